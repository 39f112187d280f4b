// One batch into the records of its samples, a thread a row, in one launch: fastlnl/ops/dynamics.
//
// Of several occurrences of an id in the batch the thread with the last one serves all, in order; the others leave. So
// no two threads touch a record. Each block looks through the ids of the batch once, with its own in a hash table.
#include "record.cuh"
#include "teams.cuh"

namespace fastlnl {

constexpr int ENTER_THREADS = 128;

// The block's ids, and the first and last position of each in the batch.
struct IdTable {
  static constexpr int SLOTS = 4 * ENTER_THREADS, NOWHERE = 0x7fffffff;
  using Key = unsigned long long;
  static constexpr Key EMPTY = ~Key(0);
  Shared<Key> ids;
  Shared<int> first, last;

  static FASTLNL_DEVICE int place(Key id) {
    return int((uint32_t(id ^ id >> 32) * 2654435761u) / (0xffffffffu / SLOTS + 1));
  }

  // Called by all threads of the block; returns the slot of the thread's id, -1 if that does not `count`.
  FASTLNL_DEVICE int find(const int64_t* index, int batch, int64_t id, bool count) const {
    const int thread = int(threadIdx.x);
    for (int slot = thread; slot < SLOTS; slot += ENTER_THREADS) {
      ids.set(slot, EMPTY);
      first.set(slot, NOWHERE);
      last.set(slot, -1);
    }
    __syncthreads();
    int mine = -1;
    if (count) {
      for (mine = place(Key(id));; mine = (mine + 1) % SLOTS) {
        const Key there = ids.replace(mine, EMPTY, Key(id));
        if (there == EMPTY || there == Key(id)) break;
      }
    }
    __syncthreads();
#pragma unroll 4
    for (int position = thread; position < batch; position += ENTER_THREADS) {
      const Key other = Key(load(index + position));
      for (int slot = place(other);; slot = (slot + 1) % SLOTS) {
        const Key there = ids.get(slot);
        if (there == EMPTY) break;
        if (there != other) continue;
        first.smallest(slot, position);
        last.largest(slot, position);
        break;
      }
    }
    __syncthreads();
    return mine;
  }
};

// For each lane that `wants`: the next position after `current` with its sample. The warp looks for one after another.
FASTLNL_DEVICE int next_of(const int64_t* index, int batch, int64_t sample, int current, bool wants) {
  const int lane = int(threadIdx.x) % 32;
  for (unsigned left = __ballot_sync(WARP, wants); left != 0; left &= left - 1) {
    const int who = __ffs(int(left)) - 1;
    const int64_t id = __shfl_sync(WARP, sample, who);
    unsigned found = 0;
    int begin = __shfl_sync(WARP, current, who) + 1;
    for (; found == 0; begin += 32)  // it is there: this lane's own row, if no other
      found = __ballot_sync(WARP, begin + lane < batch && load(index + begin + lane) == id);
    if (lane == who) current = begin - 32 + __ffs(int(found)) - 1;
  }
  return current;
}

FASTLNL_DEVICE Presentation presented(const DynamicsArgs& args, int64_t at) {
  const float* numbers = args.numbers + at;
  Presentation row{load(args.label + at), load(args.prediction + at)};
  row.nll = load(numbers), row.margin = load(numbers + 3 * args.batch);
  const BookArgs& book = args.book;
  row.mean = load(numbers + book.mean_row * args.batch), row.ema = load(numbers + book.ema_row * args.batch);
  row.kept = book.history != nullptr ? load(numbers + book.kept_row * args.batch) : 0;
  row.more_events = args.second != nullptr && load(args.second + at) != row.label;
  return row;
}

__global__ void __launch_bounds__(ENTER_THREADS) dynamics_kernel(const DynamicsArgs args) {
  FASTLNL_SHARED(IdTable::Key, ids, IdTable::SLOTS);
  FASTLNL_SHARED(int, firsts, IdTable::SLOTS);
  FASTLNL_SHARED(int, lasts, IdTable::SLOTS);
  const IdTable table{ids, firsts, lasts};
  const BookArgs& book = args.book;
  const int batch = int(args.batch), row = int(blockIdx.x) * ENTER_THREADS + int(threadIdx.x);
  const bool exists = row < batch;
  const int64_t sample = exists ? load(args.index + row) : PADDING, label = exists ? load(args.label + row) : 0;
  const bool label_fits = label >= 0 && label < book.num_classes;
  const bool id_fits = sample >= 0 && sample < book.num_samples;
  const int offends = sample != PADDING && !(label_fits && id_fits) ? row : IdTable::NOWHERE;
  if (Team<0>::reduce(offends, Smaller{}) == offends && offends == row)
    report(book.counters + ERRORS, label_fits ? BAD_ID : BAD_LABEL, row, sample, label_fits ? sample : label);

  const int slot = table.find(args.index, batch, sample, id_fits);
  const bool leads = slot >= 0 && table.last.get(slot) == row;
  int current = leads ? table.first.get(slot) : IdTable::NOWHERE;
  const uint32_t learns = learns_at(book);
  Record record{};
  Tally tally{};
  if (leads) record.read(book.records, sample);
  while (__any_sync(WARP, current <= row)) {
    if (current <= row) {
      const Presentation here = presented(args, current);
      if (here.label >= 0 && here.label < book.num_classes) record.enter(here, book.momentum, learns, tally);
    }
    if (current == row) current = IdTable::NOWHERE;
    current = next_of(args.index, batch, sample, current, current < row);
  }
  if (record.entered) {
    record.write(book.records, sample);
    write_ring(book, sample, record.kept);
  }
  Team<0>::reduce(tally.sums, Plus{});
  if (threadIdx.x < 5) {
    int64_t sum = tally.sums[0];
#pragma unroll
    for (int i = 1; i < 5; ++i) sum = int(threadIdx.x) == i ? tally.sums[i] : sum;
    if (sum != 0) add(book.counters + ROWS + threadIdx.x, sum);
  }
}

}  // namespace fastlnl

int fastlnl_dynamics(const fastlnl::DynamicsArgs* args, void* stream) {
  using namespace fastlnl;
  if (args->batch == 0) return 0;
  if (args->batch < 0 || args->batch > 1 << 30) return int(cudaErrorInvalidValue);
  const int64_t blocks = (args->batch + ENTER_THREADS - 1) / ENTER_THREADS;
  FASTLNL_LAUNCH(dynamics_kernel, blocks, ENTER_THREADS, 0, stream, *args);
  return int(cudaGetLastError());
}
