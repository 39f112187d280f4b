// How rows are dealt out to threads, in plain C++ so that it is tested without a GPU.
#pragma once

#include <algorithm>
#include <cstdint>

namespace fastlnl {

constexpr int SLOT_BYTES = 16;
constexpr int UNIT = 4;  // neighbours that a thread takes together, of whatever type: so are the additions of their row
constexpr int TILE_THREADS = 128;
constexpr int WIDE_THREADS = 256;
constexpr int MAX_BLOCK_ROWS = 32;
#ifdef FASTLNL_EMULATOR  // where large sizes would take long, the ways that only they take begin earlier
constexpr int MANY_BLOCKS = 16, PRIVATE_GROUPS = 32;
#else
constexpr int MANY_BLOCKS = 1024;     // several for each multiprocessor
constexpr int PRIVATE_GROUPS = 2048;  // whose ranges fit the shared memory that a block need not ask for
#endif

// A wide row is copied in slots of 16 bytes that are aligned in memory: the first and the last may reach beyond the row
// (head and tail), and only those are copied element by element. Elements of the first slot in front of the row:
constexpr int head_shift(uintptr_t row, int element_bytes) { return int(row % SLOT_BYTES) / element_bytes; }

// Slots of a row of `classes` elements which starts `shift` elements into the first one.
constexpr int64_t slot_count(int64_t classes, int shift, int element_bytes) {
  const int per_slot = SLOT_BYTES / element_bytes;
  return (classes + shift + per_slot - 1) / per_slot;
}

// A team of `lanes` threads keeps its row in registers, up to `elements` a thread.
struct Tile {
  int lanes, elements;

  constexpr int units() const { return elements / UNIT; }
};

// Several rows a warp up to 64 columns, a warp a row up to 1,024 (two kinds, which differ in registers), then a block.
constexpr Tile TILES[] = {{4, 4}, {8, 8}, {32, 8}, {32, 32}};
constexpr int WIDE = 4;  // in place of a tile: a block a row

struct Geometry {
  int tile;     // index into TILES, or WIDE
  int threads;  // a block
  int rounds;   // rows each team takes, one after another
  int64_t blocks;
};

// The tile depends on the number of classes alone, not on where rows lie, because it decides the order of additions: a
// row gives the same bits wherever it stands. Rows too long for the first `tiles` get a block each. `scans`: where rows of one sample go together each block looks once
// through the ids of the batch, so the teams of large batches take several rows, as long as MANY_BLOCKS remain.
constexpr Geometry row_geometry(int64_t batch, int64_t classes, bool scans, int tiles = WIDE) {
  for (int tile = 0; tile < tiles; ++tile) {
    if (classes > TILES[tile].lanes * TILES[tile].elements) continue;
    const int teams = TILE_THREADS / TILES[tile].lanes;
    const int most = scans ? MAX_BLOCK_ROWS / teams : 1;
    const int64_t rounds = std::clamp<int64_t>(batch / (int64_t(teams) * MANY_BLOCKS), 1, most);
    return {tile, TILE_THREADS, int(rounds), (batch + teams * rounds - 1) / (teams * rounds)};
  }
  return {WIDE, WIDE_THREADS, 1, batch};
}

}  // namespace fastlnl
