//! As leak.c.

use std::hint::black_box;
use std::io::Read;
use std::net::{TcpListener, TcpStream};

macro_rules! leak {
    ($($name:ident $nth:literal)+) => {$(
        #[inline(never)]
        fn $name(stream: &mut TcpStream) -> usize {
            let (mut buffer, mut all) = ([0; 64], $nth);
            while let Ok(got @ 1..) = black_box(&mut *stream).read(&mut buffer) {
                all += got;
            }
            black_box(all)
        }
    )+};
}

// Bodies that are the same would be merged into one function.
leak!(leak_0 0 leak_1 1 leak_2 2 leak_3 3 leak_4 4);

fn main() {
    let leaks = [leak_0, leak_1, leak_2, leak_3, leak_4];
    let count: usize = std::env::args().nth(1).unwrap().parse().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("{}", listener.local_addr().unwrap().port());
    let leaked: Vec<TcpStream> = (0..count)
        .map(|nth| {
            let mut stream = listener.accept().unwrap().0;
            black_box(leaks[nth % 5])(&mut stream);
            stream
        })
        .collect();
    loop {
        std::thread::park();
        black_box(&leaked);
    }
}
