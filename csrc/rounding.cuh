// Random rounding of a label memory's rows: fastlnl/ops/row_loss/storage.py.
#pragma once

#include "common.cuh"

namespace fastlnl {

constexpr uint32_t TABLE_STREAM = 0x0D470784u;  // crc32 of "label_memory"

struct RowKey {
  uint32_t first, second;
};

FASTLNL_DEVICE RowKey row_key(const RowArgs& args, int64_t sample) {
  const uint64_t step = uint64_t(load(args.step)), id = uint64_t(sample);
  const Philox words = philox({uint32_t(id), uint32_t(id >> 32), uint32_t(step), uint32_t(step >> 32)}, args.seed,
                              TABLE_STREAM);
  return {words.word[0], words.word[1]};
}

FASTLNL_DEVICE uint32_t random_word(RowKey key, int column) {  // lowbias32 of C. Wellons
  uint32_t x = uint32_t(column) ^ key.first;
  x = (x ^ (x >> 16)) * 0x7FEB352Du;
  x = (x ^ (x >> 15)) * 0x846CA68Bu;
  return x ^ (x >> 16) ^ key.second;
}

FASTLNL_DEVICE uint16_t round_bfloat(float x, uint32_t word) {
  return uint16_t((__float_as_uint(x) + (word >> 16)) >> 16);
}

FASTLNL_DEVICE uint16_t round_half(float x, uint32_t word) {  // below 2^-14 numbers are multiples of 2^-24
  if (x < 6.103515625e-5f) return uint16_t(int(x * 16777216.0f + float(word >> 8) * 5.9604644775390625e-8f));
  return uint16_t(((__float_as_uint(x) + (word >> 19)) >> 13) - (112u << 10));
}

}  // namespace fastlnl
