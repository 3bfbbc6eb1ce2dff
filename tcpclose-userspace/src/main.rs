use std::process::ExitCode;

fn main() -> ExitCode {
    tcpclose::commands::run(std::env::args_os())
}
