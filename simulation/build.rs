//! Lets the product's modules know that they are in the simulation.

#![forbid(unsafe_code)]

fn main() {
    println!("cargo::rustc-cfg=simulation");
    println!("cargo::rerun-if-changed=build.rs");
}
