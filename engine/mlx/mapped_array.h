// An array whose bytes stay where the caller has them.
#ifndef PLANARIA_MAPPED_ARRAY_H
#define PLANARIA_MAPPED_ARRAY_H

#include <stddef.h>
#include <stdint.h>

#include "mlx/c/array.h"

#ifdef __cplusplus
extern "C" {
#endif

// Makes an array of the bytes at `data`, row by row, wherever that is. The eight bytes before can be read too, and these
// written. `owner` is released by `release` when nothing reads them any more; also if MLX refuses, which has told its error
// handler then: 1, otherwise 0. Where MLX has another kind of memory (CUDA) they are copied.
int planaria_mapped_array(
    mlx_array* result,
    uint8_t* data,
    const int* shape,
    size_t axes,
    void* owner,
    void (*release)(void*));

#ifdef __cplusplus
}
#endif

#endif
