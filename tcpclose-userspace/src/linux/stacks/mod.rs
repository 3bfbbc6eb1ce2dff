//! Names the frames of user stacks.
//!
//! * [`frames`]: a stack before and after.
//! * [`namer`]: asks a [`helper`], another process of this program, which does all of the rest:
//! * `maps`, `process_files`, `module`: what a process executes. `root`: opens that without waiting.
//! * `unwind`: callers that frame pointers do not show. `system_call`: whether the stack is that of the read at all.
//! * `symbols`: names from ELF and DWARF. `debug_file`: where the DWARF of a stripped file is.
//! * `generated`, `perf_map`: names of code that a runtime has made.

mod debug_file;
pub mod frames;
mod generated;
pub mod helper;
mod maps;
mod module;
pub mod namer;
mod perf_map;
mod process_files;
mod root;
mod symbols;
mod system_call;
mod unwind;
