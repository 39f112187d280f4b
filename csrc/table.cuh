// Rows of the label memory: decoded into a unit of float, written back in the format of the table, and who writes them.
//
// Of several occurrences of an id in the batch the row with the last one (the leader) serves all of them, in order,
// from the old row; the others leave. So no block reads a table row that another one writes, in one launch and without
// waiting.
#pragma once

#include "topk.cuh"

namespace fastlnl {

constexpr float LEVELS = 254;  // of uint8: probability 1
constexpr uint8_t NEVER_WRITTEN = 255;

struct Byte {
  using Bits = uint8_t;
  static FASTLNL_DEVICE float value(Bits bits) { return bits == NEVER_WRITTEN ? -1.0f : float(bits) * (1 / LEVELS); }
  static FASTLNL_DEVICE Bits bits(float) { return 0; }  // of what lies outside of a row
};

FASTLNL_DEVICE char* table_row(const RowArgs& args, int64_t sample) {
  return static_cast<char*>(args.table) + sample * args.table_bytes;
}

// Columns outside [0, width) become 0.
template <int N>
FASTLNL_DEVICE void read_table(const RowArgs& args, int64_t sample, Columns columns, int width, float (&v)[N]) {
  char* row = table_row(args, sample);
  switch (args.table_type) {
    case FLOAT32: return decode_slot<Float>(row, columns, width, 0, v);
    case BFLOAT16: return decode_slot<BFloat>(row, columns, width, 0, v);
    case FLOAT16: return decode_slot<Half>(row, columns, width, 0, v);
    case TOPK: return read_topk(args, row, columns, width, v);
    default: return decode_slot<Byte>(row, columns, width, 0, v);
  }
}

FASTLNL_DEVICE uint8_t round_byte(float x, uint32_t word) {
  const uint32_t fixed = uint32_t(fminf(x, 1.0f) * 16777216.0f + 0.5f);
  return uint8_t((fixed * uint32_t(LEVELS) + (word >> 8)) >> 24);
}

// A unit of values as memory holds them: bytes in x, or 16-bit words in x and y, low ones first. It is called, not
// unrolled with the rows around it: nothing waits for it, and it would be half the code of the kernels.
FASTLNL_CALLED uint2 rounded_unit(int type, RowKey key, Columns columns, float4 v) {
  const float values[UNIT] = {v.x, v.y, v.z, v.w};
  uint32_t words[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < UNIT; ++i) {
    const uint32_t word = random_word(key, columns.at(i));
    if (type == UINT8)
      words[0] |= uint32_t(round_byte(values[i], word)) << 8 * i;
    else
      words[i / 2] |= uint32_t(type == BFLOAT16 ? round_bfloat(values[i], word) : round_half(values[i], word))
                      << 16 * (i % 2);
  }
  return {words[0], words[1]};
}

FASTLNL_DEVICE void write_table(const RowArgs& args, int64_t sample, Columns columns, int width, RowKey key,
                                const float (&v)[UNIT]) {
  char* row = table_row(args, sample);
  if (args.table_type == FLOAT32) {
    uint32_t bits[UNIT];
#pragma unroll
    for (int i = 0; i < UNIT; ++i) bits[i] = Float::bits(v[i]);
    store_slot(reinterpret_cast<uint32_t*>(row), columns, width, bits);
    return;
  }
  const uint2 unit = rounded_unit(args.table_type, key, columns, {v[0], v[1], v[2], v[3]});
  if (args.table_type == UINT8) {
    uint8_t bits[UNIT];
#pragma unroll
    for (int i = 0; i < UNIT; ++i) bits[i] = uint8_t(unit.x >> 8 * i);
    store_slot(reinterpret_cast<uint8_t*>(row), columns, width, bits);
  } else {
    uint16_t bits[UNIT];
#pragma unroll
    for (int i = 0; i < UNIT; ++i) bits[i] = uint16_t((i < 2 ? unit.x : unit.y) >> 16 * (i % 2));
    store_slot(reinterpret_cast<uint16_t*>(row), columns, width, bits);
  }
}

// ---- who writes

FASTLNL_DEVICE bool label_fits(const RowArgs& args, int64_t position) {
  if (args.label == nullptr) return true;
  const int64_t label = load(args.label + position);
  return label >= 0 && label < args.classes;
}

// For each of the block's rows: the first and the last position in the batch of a valid row with the same id.
struct Occurrences {
  static constexpr int NONE = 0x7fffffff, BITS = 2048;
  Shared<int64_t> ids;
  Shared<int> first, last;

  // Called by all threads of the block. One look at every id of the batch: a bitmap of hashes tells most that they do
  // not occur in this block.
  FASTLNL_DEVICE void find(const RowArgs& args, int64_t begin, int rows) const {
    FASTLNL_SHARED(uint32_t, bitmap, BITS / 32);
    const int thread = int(threadIdx.x), threads = int(blockDim.x);
    for (int i = thread; i < BITS / 32; i += threads) bitmap.set(i, 0);
    for (int i = thread; i < rows; i += threads) {
      ids.set(i, begin + i < args.batch ? load(args.index + begin + i) : -1);
      first.set(i, NONE);
      last.set(i, -1);
    }
    __syncthreads();
    for (int i = thread; i < rows; i += threads) {
      const uint32_t place = hash(ids.get(i));
      bitmap.set_bits(int(place / 32), 1u << place % 32);
    }
    __syncthreads();
#pragma unroll 4
    for (int position = thread; position < int(args.batch); position += threads) {
      const int64_t id = load(args.index + position);
      const uint32_t place = hash(id);
      if ((bitmap.get(int(place / 32)) >> place % 32 & 1) == 0) continue;
      for (int i = 0; i < rows; ++i) {
        if (ids.get(i) != id || !label_fits(args, position)) continue;
        first.smallest(i, position);
        last.largest(i, position);
      }
    }
    __syncthreads();
  }

  static FASTLNL_DEVICE uint32_t hash(int64_t id) { return (uint32_t(id) * 2654435761u) / (0xffffffffu / BITS + 1); }
};

// The next position of a valid row with this id; NONE if there is none.
template <class Lanes>
FASTLNL_DEVICE int next_occurrence(const RowArgs& args, int64_t sample, int after) {
  int found = Occurrences::NONE;
  for (int position = Lanes::lane(); position < int(args.batch); position += Lanes::size())
    if (position > after && load(args.index + position) == sample && label_fits(args, position))
      found = position < found ? position : found;
  return Lanes::reduce(found, Smaller{});
}

}  // namespace fastlnl
