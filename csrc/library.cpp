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

template <class T>
T* pointer(const Tensor& x) {
  return static_cast<T*>(x.data_ptr());
}

template <class T>
T* pointer(const OptionalTensor& x) {
  return x.has_value() ? static_cast<T*>(x->data_ptr()) : nullptr;
}

int32_t type_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return fastlnl::FLOAT32;
    case ScalarType::BFloat16: return fastlnl::BFLOAT16;
    case ScalarType::Half: return fastlnl::FLOAT16;
    case ScalarType::Byte: return fastlnl::UINT8;
    default: throw std::runtime_error("fastlnl: a tensor of a type that no CUDA kernel takes");
  }
}

// The device of `like` is current during the call.
template <class Args>
void launch(int (*launcher)(const Args*, void*), const Args& args, const Tensor& like) {
#ifndef FASTLNL_EMULATOR
  const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
#endif
  const int code = launcher(&args, stream_of(like));
  if (code != 0) throw std::runtime_error(std::string("fastlnl: the CUDA launch failed: ") + fastlnl_error_text(code));
}

RowArgs rows_of(const Tensor& logits) {
  RowArgs args{};
  args.logits = logits.data_ptr();
  args.logits_type = type_of(logits);
  args.batch = logits.size(0);
  args.classes = int32_t(logits.size(1));
  args.row_stride = logits.stride(0);
  return args;
}

void row_loss(Tensor logits, OptionalTensor label, OptionalTensor index, OptionalTensor target, OptionalTensor table,
              OptionalTensor step, OptionalTensor weight, Tensor loss, Tensor dlogits, OptionalTensor stats,
              OptionalTensor prediction, Tensor errors, int64_t kind, bool one_hot, int64_t seed, double use,
              double keep, double grad_scale, double q0, double q1, double q2, double q3) {
  RowArgs args = rows_of(logits);
  args.label = pointer<int64_t>(label);
  args.index = pointer<int64_t>(index);
  args.target = pointer<float>(target);
  args.weight = pointer<float>(weight);
  args.loss = pointer<float>(loss);
  args.dlogits = dlogits.data_ptr();
  args.stats = pointer<float>(stats);
  args.prediction = pointer<int64_t>(prediction);
  args.errors = pointer<int64_t>(errors);
  if (table.has_value()) {
    args.table = table->data_ptr();
    args.table_type = type_of(*table);
    args.num_samples = table->size(0);
    args.step = pointer<int64_t>(step);
  }
  args.loss_kind = int32_t(kind);
  args.one_hot = one_hot;
  args.seed = uint32_t(seed);
  args.use = float(use);
  args.keep = float(keep);
  args.grad_scale = float(grad_scale);
  const double q[] = {q0, q1, q2, q3};
  for (int i = 0; i < 4; ++i) args.parameters[i] = float(q[i]);
  launch(fastlnl_row_loss, args, logits);
}

void row_stats(Tensor logits, Tensor label, Tensor stats, Tensor prediction, Tensor errors) {
  RowArgs args = rows_of(logits);
  args.label = pointer<int64_t>(label);
  args.stats = pointer<float>(stats);
  args.prediction = pointer<int64_t>(prediction);
  args.errors = pointer<int64_t>(errors);
  launch(fastlnl_row_stats, args, logits);
}

void dynamics(Tensor records, Tensor counters, Tensor index, Tensor label, Tensor prediction, OptionalTensor second,
              Tensor numbers, OptionalTensor history, int64_t num_classes, int64_t mean_row, int64_t ema_row,
              int64_t kept_row, bool log_odds, double momentum) {
  fastlnl::DynamicsArgs args{};
  args.records = pointer<int32_t>(records);
  args.counters = pointer<int64_t>(counters);
  args.index = pointer<int64_t>(index);
  args.label = pointer<int64_t>(label);
  args.prediction = pointer<int64_t>(prediction);
  args.second = pointer<int64_t>(second);
  args.numbers = pointer<float>(numbers);
  args.history = pointer<void>(history);
  args.batch = index.size(0);
  args.num_samples = records.size(0);
  args.num_classes = num_classes;
  args.mean_row = int32_t(mean_row);
  args.ema_row = int32_t(ema_row);
  args.kept_row = int32_t(kept_row);
  args.log_odds = log_odds;
  args.half = history.has_value() && type_of(*history) == fastlnl::FLOAT16;
  args.momentum = float(momentum);
  launch(fastlnl_dynamics, args, records);
}

void value_histogram(Tensor x, OptionalTensor group, OptionalTensor given, OptionalTensor keys, Tensor counts,
                     Tensor mean, Tensor limits, Tensor left_out) {
  fastlnl::HistogramArgs args{};
  args.x = pointer<float>(x);
  args.group = pointer<int64_t>(group);
  args.given = pointer<double>(given);
  args.keys = pointer<int32_t>(keys);
  args.counts = pointer<int64_t>(counts);
  args.mean = pointer<double>(mean);
  args.limits = pointer<double>(limits);
  args.left_out = pointer<int64_t>(left_out);
  args.n = x.size(0);
  args.groups = counts.size(0);
  args.bins = int32_t(counts.size(1));
  launch(fastlnl_value_histogram, args, x);
}

void histogram_zoom(Tensor x, OptionalTensor group, Tensor limits, Tensor at, Tensor bin_mean, Tensor bin_counts,
                    Tensor cells, Tensor value, Tensor counts) {
  fastlnl::ZoomArgs args{};
  args.x = pointer<float>(x);
  args.group = pointer<int64_t>(group);
  args.limits = pointer<double>(limits);
  args.at = pointer<double>(at);
  args.bin_mean = pointer<double>(bin_mean);
  args.bin_counts = pointer<int64_t>(bin_counts);
  args.cells = pointer<int64_t>(cells);
  args.value = pointer<double>(value);
  args.counts = pointer<int64_t>(counts);
  args.n = x.size(0);
  args.groups = bin_counts.size(0);
  args.bins = int32_t(bin_counts.size(1));
  launch(fastlnl_histogram_zoom, args, x);
}

void mixture_em(Tensor value, Tensor counts, Tensor offset, Tensor limits, OptionalTensor start, OptionalTensor draw,
                Tensor fitted, Tensor info, Tensor odds, Tensor cut, int64_t family, int64_t init, int64_t max_iter,
                bool clip, double reg_covar, double tol) {
  fastlnl::EMArgs args{};
  args.value = pointer<double>(value);
  args.counts = pointer<int64_t>(counts);
  args.offset = pointer<int64_t>(offset);
  args.limits = pointer<double>(limits);
  args.start = pointer<double>(start);
  args.draw = pointer<double>(draw);
  args.fitted = pointer<double>(fitted);
  args.info = pointer<int64_t>(info);
  args.odds = pointer<double>(odds);
  args.cut = pointer<double>(cut);
  args.points = value.size(0);
  args.groups = fitted.size(0);
  args.max_iter = max_iter;
  args.family = int32_t(family);
  args.init = int32_t(init);
  args.clip = clip;
  args.reg_covar = reg_covar;
  args.tol = tol;
  launch(fastlnl_mixture_em, args, value);
}

void mixture_posterior(Tensor x, Tensor odds, OptionalTensor group, Tensor posterior, bool beta, bool log_odds) {
  fastlnl::PosteriorArgs args{};
  args.x = pointer<float>(x);
  args.odds = pointer<double>(odds);
  args.group = pointer<int64_t>(group);
  args.posterior = pointer<float>(posterior);
  args.n = x.size(0);
  args.groups = odds.size(0);
  args.beta = beta;
  args.log_odds = log_odds;
  launch(fastlnl_mixture_posterior, args, x);
}

void select_best(Tensor scores, Tensor quota, OptionalTensor group, Tensor mask, Tensor cut, OptionalTensor count,
                 OptionalTensor prefix, OptionalTensor remaining, bool largest) {
  fastlnl::SelectArgs args{};
  args.scores = pointer<float>(scores);
  args.quota = pointer<int64_t>(quota);
  args.group = pointer<int64_t>(group);
  args.mask = pointer<int8_t>(mask);
  args.cut = pointer<float>(cut);
  args.count = pointer<int32_t>(count);
  args.prefix = pointer<int64_t>(prefix);
  args.remaining = pointer<int64_t>(remaining);
  args.n = scores.size(0);
  args.groups = quota.size(0);
  args.largest = largest;
  launch(fastlnl_select, args, scores);
}

void two_view_loss(Tensor weak, Tensor strong, Tensor label, Tensor index, Tensor wrong_count, Tensor table,
                   OptionalTensor weights, OptionalTensor terms, OptionalTensor totals, Tensor loss, Tensor dlogits,
                   Tensor prediction, Tensor errors, int64_t mode, bool before, double grad_scale) {
  fastlnl::TwoViewArgs args{};
  args.rows = rows_of(weak);
  args.rows.label = pointer<int64_t>(label);
  args.rows.index = pointer<int64_t>(index);
  args.rows.loss = pointer<float>(loss);
  args.rows.dlogits = dlogits.data_ptr();
  args.rows.prediction = pointer<int64_t>(prediction);
  args.rows.errors = pointer<int64_t>(errors);
  args.rows.num_samples = wrong_count.size(0);
  args.rows.grad_scale = float(grad_scale);
  args.strong = strong.data_ptr();
  args.strong_stride = strong.stride(0);
  args.wrong_count = pointer<int32_t>(wrong_count);
  args.lookup = pointer<float>(table);
  args.groups = table.size(0);
  args.depth = table.size(1);
  args.weights = pointer<float>(weights);
  args.terms = pointer<float>(terms);
  args.totals = pointer<float>(totals);
  args.mode = int32_t(mode);
  args.before = before;
  launch(fastlnl_two_view_loss, args, weak);
}

}  // namespace

STABLE_TORCH_LIBRARY(fastlnl_cuda, library) {
  library.def(
      "row_loss(Tensor logits, Tensor? label, Tensor? index, Tensor? target, Tensor(a!)? table, Tensor? step, "
      "Tensor? weight, Tensor(b!) loss, Tensor(c!) dlogits, Tensor(d!)? stats, Tensor(e!)? prediction, "
      "Tensor(f!) errors, int kind, bool one_hot, int seed, float use, float keep, float grad_scale, float q0, "
      "float q1, float q2, float q3) -> ()");
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
      "Tensor(a!) fitted, Tensor(b!) info, Tensor(c!) odds, Tensor(d!) cut, int family, int init, int max_iter, "
      "bool clip, float reg_covar, float tol) -> ()");
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
