
// Appended by Planaria's engine/mlx/setup.sh: what mlx-c declares only for
// compilers with native half types. MLX's `item` and `data` copy raw memory, so
// the 16-bit unsigned functions return the very bits.

#[repr(transparent)]
#[derive(Debug, Default, Copy, Clone)]
pub struct float16_t(pub u16);

pub type bfloat16_t = u16;

pub unsafe fn mlx_array_item_float16(
    res: *mut float16_t,
    arr: mlx_array,
) -> ::std::os::raw::c_int {
    mlx_array_item_uint16(res.cast(), arr)
}

pub unsafe fn mlx_array_item_bfloat16(
    res: *mut bfloat16_t,
    arr: mlx_array,
) -> ::std::os::raw::c_int {
    mlx_array_item_uint16(res, arr)
}

pub unsafe fn mlx_array_data_float16(arr: mlx_array) -> *const float16_t {
    mlx_array_data_uint16(arr).cast()
}

pub unsafe fn mlx_array_data_bfloat16(arr: mlx_array) -> *const bfloat16_t {
    mlx_array_data_uint16(arr)
}
