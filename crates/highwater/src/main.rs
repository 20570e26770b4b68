//! The one binary: see [`highwater::main`].

fn main() -> std::process::ExitCode {
    highwater::main()
}
