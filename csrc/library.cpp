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

// The device of the logits is current during the call.
void launch(int (*launcher)(const RowArgs*, void*), const RowArgs& args, const Tensor& logits) {
#ifndef FASTLNL_EMULATOR
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
#endif
  const int code = launcher(&args, stream_of(logits));
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

}  // namespace

STABLE_TORCH_LIBRARY(fastlnl_cuda, library) {
  library.def(
      "row_loss(Tensor logits, Tensor? label, Tensor? index, Tensor? target, Tensor(a!)? table, Tensor? step, "
      "Tensor? weight, Tensor(b!) loss, Tensor(c!) dlogits, Tensor(d!)? stats, Tensor(e!)? prediction, "
      "Tensor(f!) errors, int kind, bool one_hot, int seed, float use, float keep, float grad_scale, float q0, "
      "float q1, float q2, float q3) -> ()");
  library.def(
      "row_stats(Tensor logits, Tensor label, Tensor(a!) stats, Tensor(b!) prediction, Tensor(c!) errors) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastlnl_cuda, FASTLNL_DEVICE_KEY, library) {
  library.impl("row_loss", TORCH_BOX(&row_loss));
  library.impl("row_stats", TORCH_BOX(&row_stats));
}
