#include "cpu_product.h"

#include "mlx/backend/cpu/encoder.h"
#include "mlx/c/error.h"
#include "mlx/c/private/mlx.h"
#include "mlx/primitives.h"

namespace {

using namespace mlx::core;

uint32_t numbers(const array& from) {
  if (from.dtype() == float32) {
    return 0;
  }
  if (from.dtype() == float16) {
    return 1;
  }
  return from.dtype() == bfloat16 ? 2 : 3;
}

// Its inputs are x, the weights, and scales and biases if there are any; all are contiguous.
class CpuProduct : public Primitive {
 public:
  CpuProduct(Stream stream, uint32_t mode, uint32_t bits, uint32_t group, planaria_kernel kernel)
      : Primitive(stream), mode_(mode), bits_(bits), group_(group), kernel_(kernel) {}

  void eval_cpu(const std::vector<array>& inputs, std::vector<array>& outputs) override {
    auto& out = outputs[0];
    out.set_data(allocator::malloc(out.nbytes()));
    const auto& x = inputs[0];
    const auto& weights = inputs[1];
    planaria_product product{};
    product.x = x.data<uint8_t>();
    product.weights = weights.data<uint8_t>();
    product.out = out.data<uint8_t>();
    product.inputs = x.shape(-1);
    product.rows = product.inputs == 0 ? 0 : x.size() / product.inputs;
    product.outputs = out.shape(-1);
    product.weights_bytes = weights.nbytes();
    product.x_numbers = numbers(x);
    product.weights_numbers = numbers(weights);
    product.scales_numbers = 3;
    if (inputs.size() > 2) {
      product.scales = inputs[2].data<uint8_t>();
      product.scales_bytes = inputs[2].nbytes();
      product.scales_numbers = numbers(inputs[2]);
    }
    if (inputs.size() > 3) {
      product.biases = inputs[3].data<uint8_t>();
      product.biases_bytes = inputs[3].nbytes();
    }
    product.mode = mode_;
    product.bits = bits_;
    product.group = group_;
    // MLX keeps the memory of inputs and outputs until what is dispatched here has run.
    cpu::get_command_encoder(stream()).dispatch(
        [product, kernel = kernel_]() { kernel(&product); });
  }

  void eval_gpu(const std::vector<array>&, std::vector<array>&) override {
    throw std::runtime_error("a product for CPUs was asked of a GPU");
  }

  const char* name() const override {
    return "PlanariaCpuProduct";
  }

 private:
  uint32_t mode_;
  uint32_t bits_;
  uint32_t group_;
  planaria_kernel kernel_;
};

} // namespace

extern "C" int planaria_cpu_product(
    mlx_array* result,
    mlx_array x,
    mlx_array weights,
    mlx_array scales,
    mlx_array biases,
    uint32_t mode,
    uint32_t bits,
    uint32_t group,
    planaria_kernel kernel,
    mlx_stream stream) {
  try {
    auto on = mlx_stream_get_(stream);
    std::vector<array> inputs;
    for (const auto& handle : {x, weights, scales, biases}) {
      if (handle.ctx) {
        inputs.push_back(contiguous(mlx_array_get_(handle), false, on));
      }
    }
    auto shape = inputs.at(0).shape();
    shape.back() = inputs.at(1).shape(0);
    auto dtype = inputs[0].dtype();
    auto product = std::make_shared<CpuProduct>(on, mode, bits, group, kernel);
    mlx_array_set_(*result, array(std::move(shape), dtype, std::move(product), std::move(inputs)));
    return 0;
  } catch (std::exception& e) {
    mlx_error(e.what());
    return 1;
  }
}
