//! The configuration file: flat TOML, a key for each setting.

use std::collections::BTreeMap;

use toml::de::{DeTable, DeValue};

use super::error::Problem;
use super::settings::SETTINGS;

/// What a file says. Values are still texts: the settings read them as they read flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFile {
    /// The file's name, for errors and origins.
    pub path: String,
    /// Text and line of each key.
    pub(super) values: BTreeMap<&'static str, (String, usize)>,
}

impl ConfigFile {
    /// Reads TOML text.
    ///
    /// # Errors
    /// All that is wrong with it: bad syntax, unknown keys, values that are neither strings nor whole numbers (nor booleans of a switch).
    pub fn parse(path: &str, text: &str) -> Result<ConfigFile, Vec<Problem>> {
        let line_at = |offset: usize| text[..offset.min(text.len())].matches('\n').count() + 1;
        let path = path.to_owned();
        let table = DeTable::parse(text).map_err(|error| {
            let line = line_at(error.span().map_or(0, |span| span.start));
            let message = error.message().trim_end().replace('\n', ", ");
            vec![Problem::BadSyntax { path: path.clone(), line, message }]
        })?;
        let mut values = BTreeMap::new();
        let mut problems = BTreeMap::new();
        for (key, value) in table.get_ref() {
            let (name, line) = (key.get_ref().as_ref(), line_at(key.span().start));
            match (SETTINGS.iter().find(|setting| setting.key == name), value_text(value.get_ref(), name)) {
                (Some(setting), Some(text)) => {
                    values.insert(setting.key, (text, line));
                }
                (Some(setting), None) => {
                    let (key, kind) = (setting.key.to_owned(), value.get_ref().type_str().to_owned());
                    problems.insert(line, Problem::BadKind { path: path.clone(), line, key, kind });
                }
                (None, _) => {
                    let (key, nearest) = (name.to_owned(), nearest_key(name));
                    problems.insert(line, Problem::UnknownKey { path: path.clone(), line, key, nearest });
                }
            }
        }
        if problems.is_empty() { Ok(ConfigFile { path, values }) } else { Err(problems.into_values().collect()) }
    }
}

fn value_text(value: &DeValue<'_>, key: &str) -> Option<String> {
    let is_switch = || SETTINGS.iter().any(|setting| setting.key == key && setting.alone.is_some());
    match value {
        DeValue::Boolean(value) if is_switch() => Some(value.to_string()),
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => {
            i128::from_str_radix(number.as_str(), number.radix()).ok().map(|number| number.to_string())
        }
        _ => None,
    }
}

/// The setting whose key is so near that it was probably meant: within a third of its letters.
fn nearest_key(name: &str) -> Option<&'static str> {
    let normal = name.to_ascii_lowercase().replace('-', "_");
    let distances = SETTINGS.iter().map(|setting| (edit_distance(&normal, setting.key), setting.key));
    distances.min().filter(|(distance, key)| distance * 3 <= key.len()).map(|(_, key)| key)
}

/// Letters to insert, remove or replace to get from one word to the other (Levenshtein).
fn edit_distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, from_char) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to_char) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(from_char != *to_char);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(text: &str) -> Vec<String> {
        let problems = ConfigFile::parse("gateway.toml", text).expect_err("the text is wrong");
        problems.iter().map(Problem::to_string).collect()
    }

    #[test]
    fn strings_whole_numbers_and_switches_are_values() {
        let text =
            "# first\nping_interval = \"20s\"\npong_timeout = 45\nconnections_max = 0x10\nredis_required = true\n";
        let file = ConfigFile::parse("gateway.toml", text).expect("the text is right");
        assert_eq!(file.values["ping_interval"], ("20s".to_owned(), 2));
        assert_eq!(file.values["pong_timeout"], ("45".to_owned(), 3));
        assert_eq!(file.values["connections_max"], ("16".to_owned(), 4));
        assert_eq!(file.values["redis_required"], ("true".to_owned(), 5));
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_nearest_one() {
        assert_eq!(
            messages("\nping-intervall = 3\n"),
            ["gateway.toml:2: unknown key ping-intervall; did you mean ping_interval?"]
        );
        assert_eq!(
            messages("colour = 'red'"),
            ["gateway.toml:1: unknown key colour; `ringmesh serve --help` lists all"]
        );
        // Sections are no settings either.
        assert_eq!(messages("[shards]\nn = 1").len(), 1);
    }

    #[test]
    fn all_problems_come_at_once_and_in_order() {
        let messages = messages("shards = true\nzzz = 1\nlisten = [1]\n");
        assert_eq!(messages.len(), 3);
        assert!(messages[0].starts_with("gateway.toml:1: shards is boolean"), "{messages:?}");
        assert!(messages[1].starts_with("gateway.toml:2: unknown key zzz"), "{messages:?}");
        assert!(messages[2].starts_with("gateway.toml:3: listen is array"), "{messages:?}");
    }

    #[test]
    fn bad_syntax_and_repeated_keys_have_a_line() {
        assert!(messages("shards = 1\nlisten =\n")[0].starts_with("gateway.toml:2: "));
        assert!(messages("shards = 1\n\nshards = 2\n")[0].starts_with("gateway.toml:3: duplicate key"));
    }

    #[test]
    fn edit_distances() {
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("same", "same"), 0);
    }
}
