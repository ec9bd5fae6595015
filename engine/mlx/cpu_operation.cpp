#include "cpu_operation.h"

#include "mlx/backend/cpu/encoder.h"
#include "mlx/c/error.h"
#include "mlx/c/private/mlx.h"
#include "mlx/primitives.h"

namespace {

using namespace mlx::core;

planaria_view view(const array& from) {
  planaria_view view{};
  view.data = from.data<uint8_t>();
  view.item_bytes = from.itemsize();
  view.axes = from.ndim();
  for (size_t axis = 0; axis < view.axes; ++axis) {
    view.shape[axis] = from.shape()[axis];
    view.strides[axis] = from.strides()[axis];
  }
  return view;
}

class CpuOperation : public Primitive {
 public:
  CpuOperation(Stream stream, std::shared_ptr<void> work, planaria_compute compute)
      : Primitive(stream), work_(std::move(work)), compute_(compute) {}

  void eval_cpu(const std::vector<array>& inputs, std::vector<array>& outputs) override {
    auto& out = outputs[0];
    out.set_data(allocator::malloc(out.nbytes()));
    std::vector<planaria_view> views;
    views.reserve(inputs.size());
    for (const auto& input : inputs) {
      views.push_back(view(input));
    }
    // MLX keeps the memory of inputs and outputs until what is dispatched here has run, but not this operation.
    cpu::get_command_encoder(stream()).dispatch(
        [views = std::move(views),
         work = work_,
         compute = compute_,
         data = out.data<uint8_t>(),
         bytes = out.nbytes()]() { compute(work.get(), views.data(), views.size(), data, bytes); });
  }

  void eval_gpu(const std::vector<array>&, std::vector<array>&) override {
    throw std::runtime_error("an operation for CPUs was asked of a GPU");
  }

  const char* name() const override {
    return "PlanariaCpuOperation";
  }

 private:
  std::shared_ptr<void> work_;
  planaria_compute compute_;
};

} // namespace

extern "C" int planaria_cpu_operation(
    mlx_array* result,
    const mlx_array* inputs,
    size_t count,
    const int* shape,
    size_t axes,
    void* work,
    planaria_compute compute,
    void (*release)(void*),
    mlx_stream stream) {
  std::shared_ptr<void> owned(work, release);
  try {
    std::vector<array> arrays;
    arrays.reserve(count);
    for (size_t number = 0; number < count; ++number) {
      arrays.push_back(mlx_array_get_(inputs[number]));
      if (arrays.back().ndim() > PLANARIA_MOST_AXES) {
        throw std::invalid_argument("an array of too many axes for an operation for CPUs");
      }
    }
    auto dtype = arrays.at(0).dtype();
    auto operation =
        std::make_shared<CpuOperation>(mlx_stream_get_(stream), std::move(owned), compute);
    mlx_array_set_(
        *result, array(Shape(shape, shape + axes), dtype, std::move(operation), std::move(arrays)));
    return 0;
  } catch (std::exception& e) {
    mlx_error(e.what());
    return 1;
  }
}
