// The operators torch sees: their schemas, and how they call a launcher. LibTorch's stable ABI only, so that one build
// works with every torch from 2.10 on. Shapes are checked in Python, at the door of each primitive.
#include <optional>
#include <stdexcept>
#include <string>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/csrc/stable/accelerator.h>

#include "kernels.h"

namespace {

using fastlnl::BookArgs;
using fastlnl::RowArgs;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

#ifdef FASTLNL_EMULATOR
#define FASTLNL_DEVICE_KEY CPU
void* stream_of(const Tensor&) { return nullptr; }
#else
#define FASTLNL_DEVICE_KEY CUDA
void* stream_of(const Tensor& like) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream));
  return stream;
}
#endif

// The memory of a tensor, for a pointer of any type; null where there is none.
struct Address {
  void* memory;

  template <class T>
  operator T*() const {
    return static_cast<T*>(memory);
  }
};

Address at(const Tensor& x) { return {x.data_ptr()}; }
Address at(const OptionalTensor& x) { return {x.has_value() ? x->data_ptr() : nullptr}; }

int64_t length(const OptionalTensor& x) { return x.has_value() ? x->size(0) : 0; }

int32_t type_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return fastlnl::FLOAT32;
    case ScalarType::BFloat16: return fastlnl::BFLOAT16;
    case ScalarType::Half: return fastlnl::FLOAT16;
    case ScalarType::Byte: return fastlnl::UINT8;
    case ScalarType::Short: return fastlnl::TOPK;
    default: throw std::runtime_error("fastlnl: a tensor of a type that no CUDA kernel takes");
  }
}

int32_t type_of(const OptionalTensor& x) { return x.has_value() ? type_of(*x) : fastlnl::FLOAT32; }

// The device of `like` is current during the call.
template <class Args>
void launch(int (*launcher)(const Args*, void*), const Args& args, const Tensor& like) {
#ifndef FASTLNL_EMULATOR
  const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
#endif
  const int code = launcher(&args, stream_of(like));
  if (code != 0) throw std::runtime_error(std::string("fastlnl: the CUDA launch failed: ") + fastlnl_error_text(code));
}

BookArgs book_of(const OptionalTensor& records, const OptionalTensor& counters, const OptionalTensor& history,
                 int64_t num_classes, int64_t mean_row, int64_t ema_row, int64_t kept_row, bool log_odds,
                 double momentum) {
  return {.records = at(records), .counters = at(counters), .history = at(history), .num_samples = length(records),
          .num_classes = num_classes, .mean_row = int32_t(mean_row), .ema_row = int32_t(ema_row),
          .kept_row = int32_t(kept_row), .log_odds = log_odds, .half = type_of(history) == fastlnl::FLOAT16,
          .momentum = float(momentum)};
}

// ---- the operators, as their schemas below

void row_loss(Tensor logits, OptionalTensor label, OptionalTensor index, OptionalTensor target, OptionalTensor table,
              OptionalTensor moved, OptionalTensor step, OptionalTensor weight, Tensor loss, Tensor dlogits,
              OptionalTensor stats, OptionalTensor prediction, Tensor errors, int64_t kind, bool one_hot, int64_t kept,
              int64_t seed, double use, double keep, double grad_scale, double q0, double q1, double q2, double q3,
              OptionalTensor records, OptionalTensor counters, OptionalTensor history, int64_t num_classes,
              int64_t mean_row, int64_t ema_row, int64_t kept_row, bool log_odds, double momentum) {
  const RowArgs args{
      .logits = at(logits), .label = at(label), .index = at(index), .target = at(target), .table = at(table),
      .moved = at(moved), .step = at(step), .weight = at(weight), .loss = at(loss), .dlogits = at(dlogits),
      .stats = at(stats), .prediction = at(prediction), .errors = at(errors), .row_stride = logits.stride(0),
      .batch = logits.size(0), .num_samples = length(table),
      .table_bytes = table.has_value() ? table->size(1) * int64_t(table->element_size()) : 0,
      .classes = int32_t(logits.size(1)), .logits_type = type_of(logits), .table_type = type_of(table),
      .loss_kind = int32_t(kind), .one_hot = one_hot, .kept = int32_t(kept), .seed = uint32_t(seed),
      .use = float(use), .keep = float(keep), .grad_scale = float(grad_scale),
      .parameters = {float(q0), float(q1), float(q2), float(q3)},
      .book = book_of(records, counters, history, num_classes, mean_row, ema_row, kept_row, log_odds, momentum)};
  launch(fastlnl_row_loss, args, logits);
}

void row_stats(Tensor logits, Tensor label, Tensor stats, Tensor prediction, Tensor errors) {
  const RowArgs args{
      .logits = at(logits), .label = at(label), .stats = at(stats), .prediction = at(prediction), .errors = at(errors),
      .row_stride = logits.stride(0), .batch = logits.size(0), .classes = int32_t(logits.size(1)),
      .logits_type = type_of(logits)};
  launch(fastlnl_row_stats, args, logits);
}

void dynamics(Tensor records, Tensor counters, Tensor index, Tensor label, Tensor prediction, OptionalTensor second,
              Tensor numbers, OptionalTensor history, int64_t num_classes, int64_t mean_row, int64_t ema_row,
              int64_t kept_row, bool log_odds, double momentum) {
  const fastlnl::DynamicsArgs args{
      .book = book_of(records, counters, history, num_classes, mean_row, ema_row, kept_row, log_odds, momentum),
      .index = at(index), .label = at(label), .prediction = at(prediction), .second = at(second),
      .numbers = at(numbers), .batch = index.size(0)};
  launch(fastlnl_dynamics, args, records);
}

void value_histogram(Tensor x, OptionalTensor group, OptionalTensor given, OptionalTensor keys, Tensor counts,
                     Tensor mean, Tensor limits, Tensor left_out) {
  const fastlnl::HistogramArgs args{
      .x = at(x), .group = at(group), .given = at(given), .keys = at(keys), .counts = at(counts), .mean = at(mean),
      .limits = at(limits), .left_out = at(left_out), .n = x.size(0), .groups = counts.size(0),
      .bins = int32_t(counts.size(1))};
  launch(fastlnl_value_histogram, args, x);
}

void histogram_zoom(Tensor x, OptionalTensor group, Tensor limits, Tensor where, Tensor bin_mean, Tensor bin_counts,
                    Tensor cells, Tensor value, Tensor counts) {
  const fastlnl::ZoomArgs args{
      .x = at(x), .group = at(group), .limits = at(limits), .at = at(where), .bin_mean = at(bin_mean),
      .bin_counts = at(bin_counts), .cells = at(cells), .value = at(value), .counts = at(counts), .n = x.size(0),
      .groups = bin_counts.size(0), .bins = int32_t(bin_counts.size(1))};
  launch(fastlnl_histogram_zoom, args, x);
}

void mixture_em(Tensor value, Tensor counts, Tensor offset, Tensor limits, OptionalTensor start, OptionalTensor draw,
                Tensor fitted, Tensor info, Tensor odds, Tensor cut, OptionalTensor sums, int64_t family, int64_t init,
                int64_t max_iter, bool clip, double reg_covar, double tol) {
  const fastlnl::EMArgs args{
      .value = at(value), .counts = at(counts), .offset = at(offset), .limits = at(limits), .start = at(start),
      .draw = at(draw), .fitted = at(fitted), .info = at(info), .odds = at(odds), .cut = at(cut), .sums = at(sums),
      .points = value.size(0), .groups = fitted.size(0), .max_iter = max_iter, .most_blocks = length(sums),
      .family = int32_t(family), .init = int32_t(init), .clip = clip, .reg_covar = reg_covar, .tol = tol};
  launch(fastlnl_mixture_em, args, value);
}

void mixture_posterior(Tensor x, Tensor odds, OptionalTensor group, Tensor posterior, bool beta, bool log_odds) {
  const fastlnl::PosteriorArgs args{
      .x = at(x), .odds = at(odds), .group = at(group), .posterior = at(posterior), .n = x.size(0),
      .groups = odds.size(0), .beta = beta, .log_odds = log_odds};
  launch(fastlnl_mixture_posterior, args, x);
}

void select_best(Tensor scores, Tensor quota, OptionalTensor group, Tensor mask, Tensor cut, OptionalTensor count,
                 OptionalTensor prefix, OptionalTensor remaining, bool largest) {
  const fastlnl::SelectArgs args{
      .scores = at(scores), .quota = at(quota), .group = at(group), .mask = at(mask), .cut = at(cut),
      .count = at(count), .prefix = at(prefix), .remaining = at(remaining), .n = scores.size(0),
      .groups = quota.size(0), .largest = largest};
  launch(fastlnl_select, args, scores);
}

void two_view_loss(Tensor weak, Tensor strong, Tensor label, Tensor index, Tensor wrong_count, Tensor table,
                   OptionalTensor weights, OptionalTensor terms, OptionalTensor totals, Tensor loss, Tensor dlogits,
                   Tensor prediction, Tensor errors, int64_t mode, bool before, double grad_scale) {
  const fastlnl::TwoViewArgs args{
      .rows = {.logits = at(weak), .label = at(label), .index = at(index), .loss = at(loss), .dlogits = at(dlogits),
               .prediction = at(prediction), .errors = at(errors), .row_stride = weak.stride(0),
               .batch = weak.size(0), .num_samples = wrong_count.size(0), .classes = int32_t(weak.size(1)),
               .logits_type = type_of(weak), .grad_scale = float(grad_scale)},
      .strong = at(strong), .wrong_count = at(wrong_count), .lookup = at(table), .weights = at(weights),
      .terms = at(terms), .totals = at(totals), .strong_stride = strong.stride(0), .groups = table.size(0),
      .depth = table.size(1), .mode = int32_t(mode), .before = before};
  launch(fastlnl_two_view_loss, args, weak);
}

}  // namespace

STABLE_TORCH_LIBRARY(fastlnl_cuda, library) {
  library.def(
      "row_loss(Tensor logits, Tensor? label, Tensor? index, Tensor? target, Tensor(a!)? table, "
      "Tensor(b!)? moved, Tensor? step, Tensor? weight, Tensor(c!) loss, Tensor(d!) dlogits, Tensor(e!)? stats, "
      "Tensor(f!)? prediction, Tensor(g!) errors, int kind, bool one_hot, int kept, int seed, float use, float keep, "
      "float grad_scale, float q0, float q1, float q2, float q3, Tensor(h!)? records, Tensor(i!)? counters, "
      "Tensor(j!)? history, int num_classes, int mean_row, int ema_row, int kept_row, bool log_odds, float momentum) "
      "-> ()");
  library.def(
      "row_stats(Tensor logits, Tensor label, Tensor(a!) stats, Tensor(b!) prediction, Tensor(c!) errors) -> ()");
  library.def(
      "dynamics(Tensor(a!) records, Tensor(b!) counters, Tensor index, Tensor label, Tensor prediction, "
      "Tensor? second, Tensor numbers, Tensor(c!)? history, int num_classes, int mean_row, int ema_row, int kept_row, "
      "bool log_odds, float momentum) -> ()");
  library.def(
      "value_histogram(Tensor x, Tensor? group, Tensor? given, Tensor(a!)? keys, Tensor(b!) counts, Tensor(c!) mean, "
      "Tensor(d!) limits, Tensor(e!) left_out) -> ()");
  library.def(
      "histogram_zoom(Tensor x, Tensor? group, Tensor limits, Tensor at, Tensor bin_mean, Tensor bin_counts, "
      "Tensor(a!) cells, Tensor(b!) value, Tensor(c!) counts) -> ()");
  library.def(
      "mixture_em(Tensor value, Tensor counts, Tensor offset, Tensor limits, Tensor? start, Tensor? draw, "
      "Tensor(a!) fitted, Tensor(b!) info, Tensor(c!) odds, Tensor(d!) cut, Tensor(e!)? sums, int family, int init, "
      "int max_iter, bool clip, float reg_covar, float tol) -> ()");
  library.def(
      "mixture_posterior(Tensor x, Tensor odds, Tensor? group, Tensor(a!) posterior, bool beta, bool log_odds) -> ()");
  library.def(
      "select(Tensor scores, Tensor quota, Tensor? group, Tensor(a!) mask, Tensor(b!) cut, Tensor(c!)? count, "
      "Tensor(d!)? prefix, Tensor(e!)? remaining, bool largest) -> ()");
  library.def(
      "two_view_loss(Tensor weak, Tensor strong, Tensor label, Tensor index, Tensor(a!) wrong_count, Tensor table, "
      "Tensor(b!)? weights, Tensor(c!)? terms, Tensor? totals, Tensor(d!) loss, Tensor(e!) dlogits, "
      "Tensor(f!) prediction, Tensor(g!) errors, int mode, bool before, float grad_scale) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastlnl_cuda, FASTLNL_DEVICE_KEY, library) {
  library.impl("row_loss", TORCH_BOX(&row_loss));
  library.impl("row_stats", TORCH_BOX(&row_stats));
  library.impl("dynamics", TORCH_BOX(&dynamics));
  library.impl("value_histogram", TORCH_BOX(&value_histogram));
  library.impl("histogram_zoom", TORCH_BOX(&histogram_zoom));
  library.impl("mixture_em", TORCH_BOX(&mixture_em));
  library.impl("mixture_posterior", TORCH_BOX(&mixture_posterior));
  library.impl("select", TORCH_BOX(&select_best));
  library.impl("two_view_loss", TORCH_BOX(&two_view_loss));
}
