//! The binary: everything is in the library, from `ocifs::cli::main` on.

fn main() -> std::process::ExitCode {
    ocifs::cli::main(std::env::args_os().collect())
}
