// A product with a matrix as an operation of MLX's graph, computed on a CPU by a function that the caller gives.
#ifndef PLANARIA_CPU_PRODUCT_H
#define PLANARIA_CPU_PRODUCT_H

#include <stddef.h>
#include <stdint.h>

#include "mlx/c/array.h"
#include "mlx/c/stream.h"

#ifdef __cplusplus
extern "C" {
#endif

// Numbers of an array: 0 is f32, 1 f16, 2 bf16, and 3 whatever else.

// What is to be computed: `x [rows, inputs]` times the transposed `[outputs, inputs]`, to `out [rows, outputs]`, all of
// it row by row. Scales and biases are null where there are none.
struct planaria_product {
  const uint8_t* x;
  const uint8_t* weights;
  const uint8_t* scales;
  const uint8_t* biases;
  uint8_t* out;
  size_t rows;
  size_t inputs;
  size_t outputs;
  size_t weights_bytes;
  size_t scales_bytes;
  size_t biases_bytes;
  uint32_t x_numbers;
  uint32_t weights_numbers;
  uint32_t scales_numbers;
  // Handed through from the caller.
  uint32_t mode;
  uint32_t bits;
  uint32_t group;
};

typedef void (*planaria_kernel)(const struct planaria_product*);

// `x [.., inputs]` times `weights [outputs, ..]`: `[.., outputs]`, numbers of x's type. `scales` and `biases` may be
// empty handles. 0, or 1 if MLX refuses, which has told its error handler then.
int planaria_cpu_product(
    mlx_array* result,
    mlx_array x,
    mlx_array weights,
    mlx_array scales,
    mlx_array biases,
    uint32_t mode,
    uint32_t bits,
    uint32_t group,
    planaria_kernel kernel,
    mlx_stream stream);

#ifdef __cplusplus
}
#endif

#endif
