use std::process::ExitCode;

fn main() -> ExitCode {
    tcpclose_userspace::cli::run(std::env::args_os())
}
