//! The `planaria` binary under another name, so that cargo builds it for the scenarios.

fn main() -> std::process::ExitCode {
    planaria_cli::main()
}
