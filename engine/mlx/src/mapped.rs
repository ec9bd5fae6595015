//! Arrays whose numbers stay in a file, of which the system keeps the pages that are used in memory: on CPUs of Linux.
//!
//! Nothing is copied, memory holds the numbers once, and a worker that starts again finds them where they were. In return
//! they change with the file, so a stage looks at its files after each step. Of a file that is cut the pages are gone, and
//! the system ends whoever reads them (SIGBUS).

pub(super) use self::linked::Mapping;

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "the mapping is made here, and handed to a library in C++")]
mod linked {
    use std::ffi::c_void;
    use std::fs::File;
    use std::io;
    use std::ops::Range;

    use memmap2::{Advice, MmapOptions, MmapRaw};
    use mlx_rs::Array;
    use mlx_sys::mlx_array;
    use planaria_engine::model_dir::Dtype;

    use crate::bytes::typed;
    use crate::direct::output;
    use crate::{Mlx, cpu};

    /// What `mapped_array.h` wants before the numbers; a file has a header there.
    const BEFORE: usize = 8;

    /// Some bytes of a file as memory. What is written to them stays in this process.
    pub(crate) struct Mapping(MmapRaw);

    unsafe extern "C" {
        fn planaria_mapped_array(
            result: *mut mlx_array,
            data: *mut u8,
            shape: *const i32,
            axes: usize,
            owner: *mut c_void,
            release: unsafe extern "C" fn(*mut c_void),
        ) -> i32;
    }

    impl Mapping {
        /// The bytes of this range, with their pages in memory; `None` if they have to be read, since they lie on a file
        /// system that maps nothing.
        pub(crate) fn of(file: &File, range: &Range<u64>) -> io::Result<Option<Self>> {
            let start = range.start.checked_sub(BEFORE as u64).filter(|_| cpu::is_here());
            let length = usize::try_from(range.end.saturating_sub(range.start));
            let (Some(start), Ok(length)) = (start, length) else { return Ok(None) };
            let mut options = MmapOptions::new();
            options.offset(start).len(length.saturating_add(BEFORE)).no_reserve_swap();
            // SAFETY: a mapping can change under whoever reads it, with the file, or end the process if that is cut. No
            // reference to these bytes is kept: they are read as numbers, any of which will do for arithmetic and for
            // tables as long as their indices, and what was computed with torn ones is thrown away by who finds the file
            // changed (`WeightFile::check`).
            let map = unsafe { options.map_copy(file) };
            let Ok(map) = map.map(MmapRaw::from) else { return Ok(None) };
            match map.advise(Advice::PopulateRead) {
                Ok(()) => Ok(Some(Self(map))),
                // Linux before 5.14.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(None),
                Err(error) => Err(error),
            }
        }

        /// The numbers in these bytes. `lent` is dropped when nothing can read them any more.
        pub(crate) fn into_array(
            self,
            shape: &[i32],
            dtype: Dtype,
            lent: impl Send + 'static,
        ) -> Mlx<Array> {
            // Without a reference to what others can change. There are so many bytes before the first number.
            let data = self.0.as_mut_ptr().wrapping_add(BEFORE);
            let length = self.0.len().saturating_sub(BEFORE);
            // A pointer of one word. The mapping does not move with it.
            let owner: Box<Box<dyn Send>> = Box::new(Box::new((self, lent)));
            typed(length, shape, dtype, |shape| {
                // SAFETY: at `data` there are as many bytes as the shape says, behind others, until `owner` is dropped,
                // which is once; `result` is a place for one array.
                output(|result| unsafe {
                    planaria_mapped_array(
                        result,
                        data,
                        shape.as_ptr(),
                        shape.len(),
                        Box::into_raw(owner).cast(),
                        release,
                    )
                })
            })
        }
    }

    /// # Safety
    /// `owner` is of [`Mapping::into_array`], and nobody uses it afterwards.
    unsafe extern "C" fn release(owner: *mut c_void) {
        // SAFETY: the caller's.
        drop(unsafe { Box::from_raw(owner.cast::<Box<dyn Send>>()) });
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
mod linked {
    use std::fs::File;
    use std::io;
    use std::ops::Range;

    use mlx_rs::Array;
    use planaria_engine::model_dir::Dtype;

    use crate::Mlx;

    pub(crate) enum Mapping {}

    impl Mapping {
        pub(crate) fn of(_: &File, _: &Range<u64>) -> io::Result<Option<Self>> {
            Ok(None)
        }

        pub(crate) fn into_array(self, _: &[i32], _: Dtype, _: impl Send) -> Mlx<Array> {
            match self {}
        }
    }
}
