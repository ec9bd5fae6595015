/* One f32 product through libmlxc.a and libmlx.so: the build links, the
 * libraries are found at run time, and the numbers are right. */
#include <stdio.h>

#include "mlx/c/mlx.h"

enum { ROWS = 64, INNER = 32, COLUMNS = 16 };

/* All-ones times all-ones: every element is INNER. Returns 0 if it is. */
static int product(mlx_stream stream) {
  const int left_shape[] = {ROWS, INNER};
  const int right_shape[] = {INNER, COLUMNS};
  mlx_array left = mlx_array_new();
  mlx_array right = mlx_array_new();
  mlx_array out = mlx_array_new();
  int failed = mlx_ones(&left, left_shape, 2, MLX_FLOAT32, stream) ||
               mlx_ones(&right, right_shape, 2, MLX_FLOAT32, stream) ||
               mlx_matmul(&out, left, right, stream) || mlx_array_eval(out);
  if (!failed) {
    const float* data = mlx_array_data_float32(out);
    for (int i = 0; !failed && i < ROWS * COLUMNS; ++i) {
      failed = !data || data[i] != (float)INNER;
    }
  }
  mlx_array_free(left);
  mlx_array_free(right);
  mlx_array_free(out);
  return failed;
}

int main(void) {
  mlx_stream stream = mlx_default_cpu_stream_new();
  if (product(stream)) {
    fputs("MLX ran, but its matrix product is wrong\n", stderr);
    return 1;
  }
  mlx_stream_free(stream);
  return 0;
}
