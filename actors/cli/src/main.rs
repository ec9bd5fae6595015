//! The `planaria` binary.

fn main() -> std::process::ExitCode {
    planaria_cli::main()
}
