//! Goal: the layout holds: what decides names no kernel, no clock and no channel; dependencies point one way; `unsafe`,
//! glommio and its channels stay where they are.
//!
//! Method: the text of src, without comments and literals, taken apart into words. Each rule is also shown a text that
//! breaks it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// What decides, and touches nothing.
const PURE: [&str; 10] =
    ["ids.rs", "time.rs", "ws", "client", "http", "hub", "shard/turn.rs", "bus", "cluster/view.rs", "cluster/show.rs"];
/// What does not, within.
const RIM: [&str; 2] = ["bus/redis", "bus/thread.rs"];
/// Words for what a pure file is told instead of asking: the kernel, the clock, sockets, threads, other shards.
const IMPURE_WORDS: [&str; 22] = [
    "glommio",
    "glommio_socket2",
    "libc",
    "io_uring",
    "rustix",
    "socket2",
    "Instant",
    "SystemTime",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "UnixListener",
    "UnixDatagram",
    "OwnedFd",
    "BorrowedFd",
    "RawFd",
    "File",
    "sleep",
    "spawn",
    "mpsc",
    "Mutex",
];
/// The modules of this crate that each module may name beside itself; `node` and `main`, at the end, may name all.
const MAY_NAME: [(&str, &[&str]); 21] = [
    ("ids", &[]),
    ("time", &[]),
    ("metrics", &[]),
    ("panics", &[]),
    ("http", &[]),
    ("config", &[]),
    ("ws", &["http"]),
    ("client", &["ws"]),
    ("hub", &["client", "ids", "metrics", "time", "ws"]),
    ("bus", &["client", "config", "hub", "ids", "metrics", "node", "shard", "time", "ws"]),
    ("host", &["config", "metrics"]),
    ("listeners", &["config", "node", "shard"]),
    ("logging", &["config", "panics"]),
    ("signals", &["logging"]),
    ("preflight", &["config", "host"]),
    ("doctor", &["config", "host", "listeners", "node", "preflight", "shard"]),
    // Its tests read what `metrics` writes.
    ("top", &["metrics"]),
    ("cluster", &["bus", "config", "top"]),
    // What shards share is the node's: its stage, its places, its counters.
    ("shard", &["client", "http", "hub", "ids", "listeners", "metrics", "node", "panics", "time", "ws"]),
    ("systemd", &[]),
    ("lib", &[]),
];
/// Who may name glommio, and its channels; tests of shards beside them.
const NAMES_GLOMMIO: [&str; 5] = ["shard/mesh.rs", "shard/park.rs", "shard/run.rs", "node.rs", "shard/tests/"];
const NAMES_CHANNELS: [&str; 1] = ["shard/mesh.rs"];
const NAMES_UNSAFE: [&str; 1] = ["shard/engine/"];
const NAMES_IO_URING: [&str; 2] = ["shard/engine/", "preflight/"];
const FILE_LINES_MAX: usize = 600;

/// A file of src.
struct Source {
    /// Below src.
    path: String,
    lines: usize,
    words: Vec<String>,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), lines: text.lines().count(), words: words(&code(text)) }
    }

    fn is_below(&self, places: &[&str]) -> bool {
        places.iter().any(|place| {
            self.path
                .strip_prefix(place)
                .is_some_and(|rest| rest.is_empty() || place.ends_with('/') || rest.starts_with('/'))
        })
    }

    fn names(&self, word: &str) -> bool {
        self.words.iter().any(|found| found == word)
    }

    /// The module of the crate that it belongs to.
    fn module(&self) -> &str {
        let first = self.path.split('/').next().unwrap_or_default();
        first.strip_suffix(".rs").unwrap_or(first)
    }

    /// The modules of the crate that it names. A group, `crate::{…}`, counts as the module `{`, which none may name.
    fn named_modules(&self) -> BTreeSet<&str> {
        let path = self.words.windows(4).filter(|window| window[0] == "crate" && window[1] == ":" && window[2] == ":");
        path.map(|window| window[3].as_str()).filter(|module| !module.starts_with(char::is_uppercase)).collect()
    }
}

/// All files of src.
fn sources() -> Vec<Source> {
    fn visit(root: &Path, folder: &Path, found: &mut Vec<Source>) {
        for entry in fs::read_dir(folder).expect("a folder of src") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                visit(root, &path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("UTF-8");
                let below = path.strip_prefix(root).expect("a path below src");
                found.push(Source::new(below.to_str().expect("a path in UTF-8"), &text));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    visit(&root, &root, &mut found);
    // A rule about a place that is gone would hold for ever.
    let places = PURE.iter().chain(&RIM).chain(&NAMES_GLOMMIO).chain(&NAMES_UNSAFE).chain(&NAMES_IO_URING);
    for place in places {
        assert!(found.iter().any(|source| source.is_below(&[place])), "src/{place} is no more: this test names it");
    }
    found
}

/// A rule about one file: what it does wrong, if anything.
type Rule = fn(&Source) -> Option<String>;

fn pure_files_touch_nothing(source: &Source) -> Option<String> {
    let word = IMPURE_WORDS.into_iter().find(|word| source.names(word))?;
    (source.is_below(&PURE) && !source.is_below(&RIM)).then(|| format!("names {word}, and decides"))
}

fn dependencies_point_one_way(source: &Source) -> Option<String> {
    // A module's own tests may build what it serves, to look at it from there.
    if source.path.contains("/tests/") {
        return None;
    }
    let (module, may_name) = MAY_NAME.iter().find(|(module, _)| *module == source.module())?;
    let named = source.named_modules().into_iter().find(|named| named != module && !may_name.contains(named))?;
    Some(format!("{module} names {named}, which it may not know"))
}

fn a_word_stays_where_it_is(source: &Source) -> Option<String> {
    let places: [(&str, &[&str]); 5] = [
        ("glommio", &NAMES_GLOMMIO),
        ("channel_mesh", &NAMES_CHANNELS),
        ("unsafe", &NAMES_UNSAFE),
        ("io_uring", &NAMES_IO_URING),
        ("unsafe_code", &NAMES_UNSAFE),
    ];
    let strays = |&(word, places): &(&str, &[&str])| source.names(word) && !source.is_below(places);
    if let Some((word, _)) = places.into_iter().find(strays) {
        return Some(format!("names {word}"));
    }
    let channels = source.words.windows(4).any(|window| window[0] == "glommio" && window[3] == "channels");
    (channels && !source.is_below(&NAMES_CHANNELS)).then(|| "names glommio's channels".to_owned())
}

fn no_lock_is_shared(source: &Source) -> Option<String> {
    let lock = ["Mutex", "RwLock", "Condvar"].into_iter().find(|lock| source.names(lock))?;
    Some(format!("names {lock}: a shard owns its state"))
}

fn a_file_is_read_in_one_go(source: &Source) -> Option<String> {
    (source.lines > FILE_LINES_MAX).then(|| format!("has {} lines, {FILE_LINES_MAX} at most", source.lines))
}

const RULES: [Rule; 5] = [
    pure_files_touch_nothing,
    dependencies_point_one_way,
    a_word_stays_where_it_is,
    no_lock_is_shared,
    a_file_is_read_in_one_go,
];

#[test]
fn every_file_keeps_to_the_layout() {
    let sources = sources();
    let broken: Vec<String> = sources
        .iter()
        .flat_map(|source| RULES.iter().filter_map(move |rule| Some(format!("src/{}: {}", source.path, rule(source)?))))
        .collect();
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn every_module_has_its_place() {
    let known: BTreeSet<&str> = MAY_NAME.iter().map(|(module, _)| *module).chain(["node", "main"]).collect();
    let sources = sources();
    let found: BTreeSet<&str> = sources.iter().map(Source::module).collect();
    assert_eq!(found, known, "MAY_NAME says what a module may know");
}

#[test]
fn every_rule_sees_what_breaks_it() {
    let long = "\n".repeat(FILE_LINES_MAX + 1);
    let broken: [(Rule, &str, &str); 18] = [
        (pure_files_touch_nothing, "bus/link/tests.rs", "tokio::time::sleep(it).await"),
        (pure_files_touch_nothing, "hub/state.rs", "use std::time::{Duration, Instant};"),
        (pure_files_touch_nothing, "ids.rs", "let now = std::time::SystemTime::now();"),
        (pure_files_touch_nothing, "ws/decoder/tests.rs", "std::net::TcpStream::connect(addr)"),
        (pure_files_touch_nothing, "http/head.rs", "unsafe { libc::close(fd) }"),
        (pure_files_touch_nothing, "shard/turn.rs", "let began = Instant::now();"),
        (pure_files_touch_nothing, "client/mod.rs", "glommio::timer::sleep(it).await"),
        (dependencies_point_one_way, "ws/frame.rs", "use crate::hub::Hub;"),
        (dependencies_point_one_way, "hub/state.rs", "use crate :: shard::run;"),
        (dependencies_point_one_way, "client/reply.rs", "use crate::{ws::encode, shard::chunk};"),
        (a_word_stays_where_it_is, "shard/conn.rs", "glommio::spawn_local(it)"),
        (a_word_stays_where_it_is, "shard/run.rs", "use glommio::channels::local_channel;"),
        (a_word_stays_where_it_is, "shard/mod.rs", "pub use glommio::channels::channel_mesh::Full;"),
        (a_word_stays_where_it_is, "shard/park.rs", "let fd = unsafe { OwnedFd::from_raw_fd(fd) };"),
        (a_word_stays_where_it_is, "shard/engines.rs", "unsafe fn it() {}"),
        (a_word_stays_where_it_is, "shard/sockets.rs", "use io_uring::IoUring;"),
        (no_lock_is_shared, "node.rs", "shards: Arc<std::sync::Mutex<Vec<u8>>>,"),
        (a_file_is_read_in_one_go, "main.rs", &long),
    ];
    for (rule, path, text) in broken {
        assert!(rule(&Source::new(path, text)).is_some(), "src/{path} may contain {text}");
    }
}

#[test]
fn only_code_counts() {
    let text = r####"
        // unsafe in a comment, "with a quote
        /* unsafe /* nested */ unsafe " */
        //! unsafe docs
        let strings = ["unsafe \" unsafe", r"unsafe \", r#"unsafe " unsafe"#, b"unsafe"];
        let chars = ['"', '\'', '\\', b'"'];
        fn lifetime<'unsafely>(it: &'unsafely str) -> &'unsafely str { kept(it) }
        #![allow(unsafe_code)]
        let r#type = "unsafe"; last
    "####;
    let source = Source::new("a.rs", text);
    assert!(!source.names("unsafe"), "{:?}", source.words);
    for word in ["strings", "chars", "lifetime", "kept", "unsafe_code", "last"] {
        assert!(source.names(word), "{word} is not in {:?}", source.words);
    }
    assert!(Source::new("a.rs", "let it = '\"'; unsafe { 1 }").names("unsafe"));
}

/// The text without its comments, strings and characters.
fn code(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = skipped(rest, code.chars().next_back());
        if skipped > 0 {
            code.push(' ');
            rest = &rest[skipped..];
        } else {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    code
}

/// How many bytes of a comment, a string or a character the text begins with; 0 when it begins with code.
fn skipped(text: &str, before: Option<char>) -> usize {
    let in_word = before.is_some_and(is_in_word);
    if text.starts_with("//") {
        return text.find('\n').unwrap_or(text.len());
    }
    if text.starts_with("/*") {
        return block_comment(text);
    }
    if let Some(inner) = text.strip_prefix('"') {
        return 1 + until_quote(inner, '"');
    }
    if let Some(raw) = text.strip_prefix('r').filter(|_| !in_word || before == Some('b')) {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            let end = format!("\"{}", "#".repeat(hashes));
            let from = 1 + hashes + 1;
            return text[from..].find(&end).map_or(text.len(), |at| from + at + end.len());
        }
    }
    // A lifetime has no quote behind its name.
    if let Some(inner) = text.strip_prefix('\'') {
        let mut chars = inner.char_indices();
        let is_character = match chars.next() {
            Some((_, '\\')) => true,
            Some(_) => chars.next().is_some_and(|(_, second)| second == '\''),
            None => false,
        };
        if is_character {
            return 1 + until_quote(inner, '\'');
        }
    }
    0
}

/// Bytes up to the closing quote, and with it.
fn until_quote(text: &str, quote: char) -> usize {
    let mut chars = text.char_indices();
    while let Some((at, character)) = chars.next() {
        match character {
            '\\' => drop(chars.next()),
            _ if character == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

fn block_comment(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// Identifiers and keywords, and every other character by itself.
fn words(code: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut goes_on = false;
    for character in code.chars() {
        let in_word = is_in_word(character);
        match words.last_mut() {
            Some(word) if goes_on && in_word => word.push(character),
            _ if character.is_whitespace() => {}
            _ => words.push(character.to_string()),
        }
        goes_on = in_word;
    }
    words
}

fn is_in_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}
