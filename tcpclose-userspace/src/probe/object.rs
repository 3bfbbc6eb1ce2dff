//! The eBPF object that build.rs embeds; empty where it was told to embed none.

pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tcpclose-ebpf"));
