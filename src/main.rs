//! The binary: calls [`ocifs::cli::main`]; everything else is in the library.

fn main() -> std::process::ExitCode {
    ocifs::cli::main(std::env::args_os().collect())
}
