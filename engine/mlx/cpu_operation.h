// An operation of MLX's graph that is computed on a CPU by a function that the caller gives.
#ifndef PLANARIA_CPU_OPERATION_H
#define PLANARIA_CPU_OPERATION_H

#include <stddef.h>
#include <stdint.h>

#include "mlx/c/array.h"
#include "mlx/c/stream.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PLANARIA_MOST_AXES 5

// An array in memory. Shape and strides count elements.
struct planaria_view {
  const uint8_t* data;
  size_t item_bytes;
  size_t axes;
  int64_t shape[PLANARIA_MOST_AXES];
  int64_t strides[PLANARIA_MOST_AXES];
};

// Computes `out`, which takes `out_bytes` row by row, from as many inputs as the operation was made of. `work` is the
// caller's.
typedef void (*planaria_compute)(
    const void* work, const struct planaria_view* inputs, size_t count, uint8_t* out, size_t out_bytes);

// Makes the operation that gives an array of this shape, with elements of the first input's type. `work` is released
// by `release` when nothing can call `compute` any more; also if MLX refuses, which has told its error handler then:
// 1, otherwise 0.
int planaria_cpu_operation(
    mlx_array* result,
    const mlx_array* inputs,
    size_t count,
    const int* shape,
    size_t axes,
    void* work,
    planaria_compute compute,
    void (*release)(void*),
    mlx_stream stream);

#ifdef __cplusplus
}
#endif

#endif
