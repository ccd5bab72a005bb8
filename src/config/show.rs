//! What is in force, as TOML that can be given back with `--config`.

use super::resolve::Effective;
use super::settings::SETTINGS;

/// Prints every setting with the origin of its value. Passwords are masked.
pub fn as_toml(effective: &Effective) -> String {
    let assignments: Vec<String> = SETTINGS
        .iter()
        .map(|setting| {
            let value = (setting.written)(&effective.config);
            let value = if setting.bare { value } else { toml::Value::String(value).to_string() };
            format!("{} = {value}", setting.key)
        })
        .collect();
    let width = assignments.iter().map(|text| text.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    let mut group = "";
    for ((setting, assignment), origin) in SETTINGS.iter().zip(&assignments).zip(&effective.origins) {
        if setting.group != group {
            let gap = if group.is_empty() { "" } else { "\n" };
            group = setting.group;
            text += &format!("{gap}# {group}\n");
        }
        // A line break in the name of the file would end the comment.
        let origin = origin.to_string().replace(|c: char| c.is_control(), "?");
        text += &format!("{assignment:width$}  # {origin}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ConfigFile, Machine, Sources, resolve};

    fn machine() -> Machine {
        Machine { cores: 2, memory_bytes: 1 << 30, somaxconn: 128, host_name: None }
    }

    #[test]
    fn what_is_printed_reads_as_the_same_configuration() {
        let flags = [
            ("node_id", "a.b"),
            ("redis", "redis+cluster://a:1,b:2"),
            ("listen", "[::1]:9000,10.0.0.1:9001,proxy"),
            ("trusted_proxies", "10.0.0.0/8,fd00::/8"),
            ("admin_listen", "off"),
            ("message_bytes_max", "1000"),
            ("ping_interval", "1500ms"),
            ("log_level", "info,ringmesh=debug"),
            ("log_format", "json"),
        ];
        let flags = flags.map(|(key, text)| (key, text.to_owned())).into();
        let first = resolve(&Sources { flags, ..Sources::default() }, &machine()).expect("the flags are right");
        let file = ConfigFile::parse("printed.toml", &as_toml(&first)).expect("what is printed is TOML");
        // Another machine would fill in other values: none may be left to it.
        let other = Machine { cores: 64, memory_bytes: 1 << 40, somaxconn: 1, host_name: Some("other".to_owned()) };
        let second = resolve(&Sources { file: Some(file), ..Sources::default() }, &other).expect("the file is right");
        assert_eq!(second.config, first.config);
    }

    #[test]
    fn each_line_tells_its_origin_and_no_line_a_password() {
        let flags = [("redis", "redis://u:secret@h:1".to_owned()), ("shards", "3".to_owned())].into();
        let text = as_toml(&resolve(&Sources { flags, ..Sources::default() }, &machine()).expect("right"));
        assert!(text.contains("redis = \"redis://u:***@h:1\""), "{text}");
        assert!(!text.contains("secret"), "{text}");
        let line = |key: &str| text.lines().find(|line| line.starts_with(key)).expect("each key has a line");
        assert!(line("shards = 3 ").ends_with("# flag --shards"), "{text}");
        assert!(line("listen = \"0.0.0.0:8080\" ").ends_with("# default"), "{text}");
        assert_eq!(text.lines().filter(|line| line.contains(" = ")).count(), SETTINGS.len());
    }
}
