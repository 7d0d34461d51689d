fn main() -> std::process::ExitCode {
    adit::cli::main()
}
