/* Times one f32 product through libmlxc.a and libmlx.so: the build links, the
 * libraries are found at run time, the numbers are right, and the BLAS in use
 * is named. Prints "<milliseconds> <path of the BLAS that was mapped>". */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "mlx/c/mlx.h"

enum { ROWS = 512, INNER = 2048, COLUMNS = 2048 };

static double now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

/* All-ones times all-ones: every element is `inner`. Returns 0 if it is. */
static int product(mlx_stream stream, int rows, int inner, int columns,
                   double* elapsed_ms) {
  const int left_shape[] = {rows, inner};
  const int right_shape[] = {inner, columns};
  mlx_array left = mlx_array_new();
  mlx_array right = mlx_array_new();
  mlx_array out = mlx_array_new();
  int failed = mlx_ones(&left, left_shape, 2, MLX_FLOAT32, stream) ||
               mlx_ones(&right, right_shape, 2, MLX_FLOAT32, stream) ||
               mlx_array_eval(left) || mlx_array_eval(right);
  if (!failed) {
    const double start = now_ms();
    failed = mlx_matmul(&out, left, right, stream) || mlx_array_eval(out);
    *elapsed_ms = now_ms() - start;
  }
  if (!failed) {
    const float* data = mlx_array_data_float32(out);
    const long last = (long)rows * columns - 1;
    failed = !data || data[0] != (float)inner || data[last] != (float)inner;
  }
  mlx_array_free(left);
  mlx_array_free(right);
  mlx_array_free(out);
  return failed;
}

static void print_blas(void) {
  char line[4096];
  char found[4096] = "none";
  FILE* maps = fopen("/proc/self/maps", "r");
  while (maps && fgets(line, sizeof line, maps)) {
    char* path = strchr(line, '/');
    /* OpenBLAS wins over the name of a wrapper that merely forwards to it. */
    if (path && (strstr(path, "openblas") ||
                 (strstr(path, "/libblas") && !strstr(found, "openblas")))) {
      path[strcspn(path, "\n")] = '\0';
      strcpy(found, path);
    }
  }
  if (maps) {
    fclose(maps);
  }
  puts(found);
}

int main(void) {
  double ms = 0;
  mlx_stream stream = mlx_default_cpu_stream_new();
  /* The small product first, so that thread start-up is not in the time. */
  if (product(stream, 64, 64, 64, &ms) ||
      product(stream, ROWS, INNER, COLUMNS, &ms)) {
    fputs("MLX ran, but its matrix product is wrong\n", stderr);
    return 1;
  }
  printf("%.0f ", ms);
  print_blas();
  mlx_stream_free(stream);
  return 0;
}
