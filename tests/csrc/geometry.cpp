// csrc/geometry.h for ctypes: it is plain C++, so this needs neither CUDA nor the emulator.
#include "geometry.h"

extern "C" {

int head_shift(uint64_t row, int element_bytes) { return fastlnl::head_shift(row, element_bytes); }
int64_t slot_count(int64_t classes, int shift, int element_bytes) {
  return fastlnl::slot_count(classes, shift, element_bytes);
}
// tile, lanes, elements a lane, threads, rounds, blocks
void row_geometry(int64_t batch, int64_t classes, int scans, int64_t* out) {
  const fastlnl::Geometry found = fastlnl::row_geometry(batch, classes, scans != 0);
  const bool wide = found.tile == fastlnl::WIDE;
  out[0] = found.tile;
  out[1] = wide ? found.threads : fastlnl::TILES[found.tile].lanes;
  out[2] = wide ? 0 : fastlnl::TILES[found.tile].elements;
  out[3] = found.threads;
  out[4] = found.rounds;
  out[5] = found.blocks;
}
int tile_units(int tile) { return fastlnl::TILES[tile].units(); }
int unit() { return fastlnl::UNIT; }
int max_block_rows() { return fastlnl::MAX_BLOCK_ROWS; }
}
