#include "mapped_array.h"

#include <cstring>
#include <memory>

#include "mlx/c/error.h"
#include "mlx/c/private/mlx.h"

namespace {

using namespace mlx::core;

array make(uint8_t* data, const Shape& shape, const std::shared_ptr<void>& owner) {
#ifndef PLANARIA_MLX_CUDA
  // MLX's buffer on CPUs is an allocation that begins with its size, eight bytes before the elements. MLX reads the size
  // only to see whether an array that nobody else holds has room for a result; these can be written to, so any will do.
  allocator::Buffer buffer(data - sizeof(size_t));
  array mapped(buffer, shape, uint8, [owner](allocator::Buffer) {});
  if (mapped.data<uint8_t>() == data) {
    return mapped;
  }
#endif
  size_t bytes = 1;
  for (auto dim : shape) {
    bytes *= dim;
  }
  auto copy = allocator::malloc(bytes);
  std::memcpy(copy.raw_ptr(), data, bytes);
  return array(copy, shape, uint8);
}

} // namespace

extern "C" int planaria_mapped_array(
    mlx_array* result,
    uint8_t* data,
    const int* shape,
    size_t axes,
    void* owner,
    void (*release)(void*)) {
  std::shared_ptr<void> owned(owner, release);
  try {
    mlx_array_set_(*result, make(data, Shape(shape, shape + axes), owned));
    return 0;
  } catch (std::exception& e) {
    mlx_error(e.what());
    return 1;
  }
}
