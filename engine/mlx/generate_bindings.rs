//! Writes the bindings that mlx-sys's own build script would write.
//!
//! setup.sh compiles this as a one-off crate whose only dependency is the
//! `bindgen` that mlx-sys asks for. Options and header list come from the
//! crate's own `bindgen_config.rs`, so they cannot drift from upstream's.

use std::{env, error::Error, fs, path::Path};

mod upstream {
    include!(env!("PLANARIA_BINDGEN_CONFIG"));
}

/// Usage: generate-bindings <mlx-c root> <Rust text to append> <output file>
fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [mlx_c_root, appendix, output] = arguments.as_slice() else {
        return Err("expected: <mlx-c root> <appendix> <output>".into());
    };
    let root = Path::new(mlx_c_root);
    let headers = upstream::discover_headers(root)?;
    let bindings = upstream::builder(root, &headers)
        // The include guard of mlx-c's half.h, which has declarations on ARM
        // only, and there such as libclang 14 refuses. Both architectures get
        // those of the appendix instead.
        .clang_arg("-DMLX_HALF_H")
        .generate()?;
    fs::write(
        output,
        bindings.to_string() + &fs::read_to_string(appendix)?,
    )?;
    Ok(())
}
