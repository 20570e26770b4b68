# Builds and runs a program with dependencies, incremental build included.
cd "$directory" || exit 1
export CARGO_TARGET_DIR=$directory/target
. "${BASH_SOURCE[0]%/*}/../step.sh"
mkdir -p program/src
cat >program/Cargo.toml <<'TOML'
[package]
name = "program"
edition = "2021"
[workspace]
[dependencies]
anyhow = "1"
serde_json = "1"
TOML
cat >program/src/main.rs <<'RUST'
fn main() -> anyhow::Result<()> {
    let value: serde_json::Value = serde_json::from_str("{\"answer\": 42}")?;
    println!("{}", value["answer"]);
    Ok(())
}
RUST
answers() { [ "$(./target/debug/program)" = "$1" ]; }
step build cargo build -q --manifest-path program/Cargo.toml
step run answers 42
sleep 1.1
sed -i 's/42/43/' program/src/main.rs
step build-again cargo build -q --manifest-path program/Cargo.toml
step run-again answers 43
is_fresh() { cargo build --manifest-path program/Cargo.toml 2>&1 | tee /dev/stderr | grep -vq Compiling; }
step nothing-to-do is_fresh
step release cargo build -q --release --manifest-path program/Cargo.toml
