//! Names of functions, and their places in source files.

use std::collections::HashMap;
use std::path::PathBuf;

use blazesym::symbolize::source::{Elf, Source};
use blazesym::symbolize::{CodeInfo, Input, Symbolized, Symbolizer};

use crate::linux::stacks::frames::{Cut, Frame, Stack};
use crate::linux::stacks::process_files::ProcessFiles;

/// The most frames of a stack, inlined ones among them.
const MOST_FRAMES: usize = 256;
/// The longest name that is kept, bytes.
const LONGEST: usize = 512;

/// Names the frames of `stacks` that are in files. Inlined functions become frames of their own.
pub fn name(stacks: &mut [Stack], files: &ProcessFiles) {
    let symbolizer = Symbolizer::builder().enable_auto_reload(false).build();
    let mut known: HashMap<(PathBuf, u64), Vec<Frame>> = HashMap::new();
    for stack in stacks {
        let frames = std::mem::take(&mut stack.frames);
        for frame in frames {
            let Some(module) = files.module(&frame) else {
                stack.frames.push(frame);
                continue;
            };
            let path = module.path();
            let named =
                known.entry((path.clone(), frame.offset)).or_insert_with(|| named(&symbolizer, path, &frame));
            stack.frames.extend_from_slice(named);
            if stack.frames.len() > MOST_FRAMES {
                stack.frames.truncate(MOST_FRAMES);
                stack.cut = Some(Cut::Depth);
                break;
            }
        }
    }
}

fn named(symbolizer: &Symbolizer, path: PathBuf, frame: &Frame) -> Vec<Frame> {
    let source = Source::from(Elf::new(path));
    let found = symbolizer.symbolize_single(&source, Input::FileOffset(frame.offset));
    let Ok(Symbolized::Sym(symbol)) = found else { return vec![frame.clone()] };
    let at = |name: &str, place: Option<&CodeInfo<'_>>, inlined: bool| Frame {
        function: Some(shortened(name)),
        file: place.map(|place| shortened(&place.to_path().to_string_lossy())),
        line: place.and_then(|place| place.line),
        inlined,
        ..frame.clone()
    };
    // The symbol's own place is where the first inlined function is called, and so on inwards.
    let mut frames = vec![at(&symbol.name, symbol.code_info.as_deref(), false)];
    frames.extend(symbol.inlined.iter().map(|inlined| at(&inlined.name, inlined.code_info.as_ref(), true)));
    frames.reverse();
    frames
}

fn shortened(text: &str) -> String {
    let end =
        text.char_indices().map(|(at, char)| at + char.len_utf8()).take_while(|end| *end <= LONGEST).last();
    text.get(..end.unwrap_or(0)).unwrap_or_default().to_owned()
}
