# The tools that dependencies are checked and packages made with, in the versions that they were tried in. To be
# sourced in the root of the repository; they go to target/tools.

# need TOOL VERSION: installs it from crates.io where it is not there. Unoptimized, which takes a third of the time.
need() {
    local tools=$PWD/target/tools
    case $PATH in "$tools"/bin:*) ;; *) PATH=$tools/bin:$PATH ;; esac
    if [ -x "$tools/bin/$1" ] && cargo install --list --root "$tools" | grep -q "^$1 v$2:"; then return; fi
    CARGO_PROFILE_DEV_DEBUG=0 cargo install --quiet --debug --locked --root "$tools" "$1@$2"
}

need_cargo_deb() { need cargo-deb 3.8.0; }
need_cargo_deny() { need cargo-deny 0.20.2; }
need_cargo_cyclonedx() { need cargo-cyclonedx 0.5.9; }
