//! `tenon cache`: what lies in the cache that all apps of a host share, emptying it, and checking it.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::bail;
use serde_json::json;

use super::progress::Progress;
use crate::artifact::cache::inventory::{Inventory, Reference};
use crate::artifact::cache::{Cache, Evicted, Goal, Verified};
use crate::config::Config;

/// Shows, empties or checks the cache that all apps of this host share.
#[derive(clap::Args, Debug)]
pub struct CacheArgs {
    #[command(subcommand)]
    command: CacheCommand,
}

#[derive(clap::Subcommand, Debug)]
enum CacheCommand {
    /// Shows what was pulled or pushed under which reference, and what belongs to none
    Ls(LsArgs),
    /// Removes what no process uses: without options, only what is over the bound (`cache.max_mib`)
    Prune(PruneArgs),
    /// Reads everything, and removes and names what is damaged; the exit code is 1 if something was.
    Verify,
}

#[derive(clap::Args, Debug)]
struct LsArgs {
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args, Debug)]
struct PruneArgs {
    /// Removes everything that is not in use.
    #[arg(long, conflicts_with = "older_than")]
    all: bool,
    /// Removes what was last used longer ago than this: a number and `s`, `m`, `h`, `d` or `w`, such as `7d`
    #[arg(long, value_name = "TIME", value_parser = time)]
    older_than: Option<Duration>,
    /// Only tells what would be removed
    #[arg(long)]
    dry_run: bool,
}

/// How often it is told how far a check is.
const TOLD: Duration = Duration::from_secs(2);

/// Does what `args` ask for.
///
/// # Errors
/// The cache cannot be read or written, or something in it was damaged.
pub fn run(args: &CacheArgs, config: &Config, progress: &Progress) -> anyhow::Result<()> {
    let folder = config.cache_dir()?;
    let max_bytes = config.cache.max_bytes();
    match &args.command {
        CacheCommand::Ls(args) => {
            let inventory = Inventory::of(&folder)
                .map_err(|error| anyhow::anyhow!("cannot read the cache `{}`: {error}", folder.display()))?;
            match args.json {
                true => println!("{:#}", json(&inventory, &folder, max_bytes)),
                false => print!("{}", table(&inventory, &folder, max_bytes, SystemTime::now())),
            }
        }
        CacheCommand::Prune(args) => {
            let goal = match (args.all, args.older_than) {
                (true, _) => Goal::All,
                (false, Some(age)) => {
                    Goal::UnusedSince(SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH))
                }
                (false, None) if max_bytes == 0 => Goal::Bytes(u64::MAX),
                (false, None) => Goal::Bytes(max_bytes),
            };
            let evicted = Cache::open(&folder)?.evict(goal, args.dry_run)?;
            print!("{}", removed(&evicted, goal, args.dry_run));
        }
        CacheCommand::Verify => {
            let verified = verify(&Cache::open(&folder)?, progress)?;
            print!("{}", checked(&verified));
            if !verified.broken.is_empty() {
                bail!(
                    "{} damaged files were removed; pull or deploy again what needs them",
                    verified.broken.len()
                );
            }
        }
    }
    Ok(())
}

fn verify(cache: &Cache, progress: &Progress) -> anyhow::Result<Verified> {
    let mut told = Instant::now();
    let verified = cache.verify(&mut |far| {
        if told.elapsed() > TOLD {
            told = Instant::now();
            let percent = far.done.saturating_mul(100) / far.total.max(1);
            let name = far.path.file_name().unwrap_or_default().to_string_lossy();
            let text = format!("{percent} %, {} of {}: {name}", size(far.done), size(far.total));
            progress.say("Verifying", text);
        }
    })?;
    Ok(verified)
}

/// References, then what belongs to none, then all together.
fn table(inventory: &Inventory, folder: &Path, max_bytes: u64, now: SystemTime) -> String {
    let mut text = String::new();
    if !inventory.references.is_empty() {
        let rows = inventory.references.iter().map(|reference| {
            let found = &reference.remembered;
            let in_use = match reference.missing {
                _ if reference.groups.is_empty() => "gone".to_owned(),
                0 => yes(reference.in_use).to_owned(),
                1 => format!("{}, 1 blob missing", yes(reference.in_use)),
                missing => format!("{}, {missing} blobs missing", yes(reference.in_use)),
            };
            let digest = found.manifest.to_string().chars().take("sha256:".len() + 12).collect();
            let bytes = inventory.bytes_of(reference);
            [found.reference.clone(), digest, size(bytes), ago(now, last_use(inventory, reference)), in_use]
        });
        text += &columns(["REFERENCE", "DIGEST", "SIZE", "LAST USE", "IN USE"], rows);
        text.push('\n');
    }
    let sums = inventory.unreferenced();
    if !sums.is_empty() {
        let rows = sums.iter().map(|(kind, sum)| {
            [(*kind).to_owned(), sum.files.to_string(), size(sum.bytes), size(sum.in_use_bytes)]
        });
        text += &columns(["OF NO REFERENCE", "FILES", "SIZE", "IN USE"], rows);
        text.push('\n');
    }
    let bound = match max_bytes {
        0 => "without a bound (`cache.max_mib`)".to_owned(),
        max => format!("of {} (`cache.max_mib`)", size(max)),
    };
    let (total, in_use) = (size(inventory.bytes), size(in_use_bytes(inventory)));
    let _ = writeln!(text, "{total} {bound}, {in_use} in use, in {}", folder.display());
    text
}

fn json(inventory: &Inventory, folder: &Path, max_bytes: u64) -> serde_json::Value {
    let unix_s = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let references = inventory.references.iter().map(|reference| {
        json!({
            "reference": reference.remembered.reference,
            "digest": reference.remembered.manifest,
            "bytes": inventory.bytes_of(reference),
            "last_use_unix_s": unix_s(last_use(inventory, reference)),
            "in_use": reference.in_use,
            "missing_blobs": if reference.groups.is_empty() { None } else { Some(reference.missing) },
        })
    });
    let sums = inventory.unreferenced().into_iter().map(
        |(kind, sum)| json!({ "kind": kind, "files": sum.files, "bytes": sum.bytes, "in_use_bytes": sum.in_use_bytes }),
    );
    json!({
        "folder": folder.display().to_string(),
        "bytes": inventory.bytes,
        "in_use_bytes": in_use_bytes(inventory),
        "max_bytes": Some(max_bytes).filter(|max| *max > 0),
        "references": references.collect::<Vec<_>>(),
        "unreferenced": sums.collect::<Vec<_>>(),
    })
}

fn last_use(inventory: &Inventory, reference: &Reference) -> SystemTime {
    let groups = reference.groups.iter().map(|group| inventory.groups[*group].used);
    groups.chain([reference.remembered.used]).max().unwrap_or(SystemTime::UNIX_EPOCH)
}

fn in_use_bytes(inventory: &Inventory) -> u64 {
    inventory.groups.iter().filter(|group| group.in_use).map(|group| group.bytes).sum()
}

fn removed(evicted: &Evicted, goal: Goal, dry_run: bool) -> String {
    let mut text = String::new();
    let (forgets, freed) = match dry_run {
        true => ("would forget", "would free"),
        false => ("forgot", "freed"),
    };
    for reference in &evicted.references {
        let _ = writeln!(text, "{forgets} {reference}");
    }
    let _ = writeln!(
        text,
        "{freed} {} in {} files; {} are left, {} of them in use",
        size(evicted.bytes),
        evicted.files,
        size(evicted.left_bytes),
        size(evicted.in_use_bytes)
    );
    if evicted.files == 0 && matches!(goal, Goal::Bytes(_)) {
        text += "the cache is within its bound; `--all` removes everything that is not in use\n";
    }
    text
}

fn checked(verified: &Verified) -> String {
    let mut text = String::new();
    for path in &verified.broken {
        let _ = writeln!(text, "damaged, and removed: {}", path.display());
    }
    for (reference, missing) in &verified.incomplete {
        let _ = writeln!(text, "{reference} lacks {missing} of its blobs; pull it again to have them");
    }
    let _ = writeln!(text, "{} files are whole", verified.files);
    text
}

/// A table whose last column is not padded.
fn columns<const N: usize>(header: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let lines: Vec<_> = std::iter::once(header.map(str::to_owned)).chain(rows).collect();
    let widths: Vec<_> =
        (0..N).map(|n| lines.iter().map(|line| line[n].chars().count()).max().unwrap_or(0)).collect();
    let line = |line: &[String; N]| {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}  "));
        format!("{}\n", cells.collect::<String>().trim_end())
    };
    lines.iter().map(line).collect()
}

fn yes(is_so: bool) -> &'static str {
    if is_so { "yes" } else { "no" }
}

/// Bytes as people read them: `512 B`, `3.2 MiB`.
fn size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let Some(unit) = (1..=6).rev().find(|unit| bytes >> (10 * unit) > 0) else { return format!("{bytes} B") };
    // In tenths, so as not to leave whole numbers.
    let tenths = (u128::from(bytes) * 10) >> (10 * unit);
    format!("{}.{} {}", tenths / 10, tenths % 10, units[unit - 1])
}

/// How long ago something was: `5 min ago`.
fn ago(now: SystemTime, then: SystemTime) -> String {
    let seconds = now.duration_since(then).unwrap_or_default().as_secs();
    match seconds {
        0..60 => "just now".to_owned(),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

/// A time such as `7d`.
fn time(text: &str) -> Result<Duration, String> {
    let wrong = || "write a number and one of `s`, `m`, `h`, `d` and `w`, such as `7d`".to_owned();
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 60 * 60,
        'd' => 24 * 60 * 60,
        'w' => 7 * 24 * 60 * 60,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_readable() {
        let check = |bytes, expected: &str| assert_eq!(size(bytes), expected);
        check(0, "0 B");
        check(1023, "1023 B");
        check(1536, "1.5 KiB");
        check((3 << 30) - 1, "2.9 GiB");
        check(u64::MAX, "15.9 EiB");
        let then =
            |seconds| ago(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds), SystemTime::UNIX_EPOCH);
        let check = |seconds, expected: &str| assert_eq!(then(seconds), expected);
        check(59, "just now");
        check(60, "1 min ago");
        check(7200, "2 h ago");
        check(200_000, "2 days ago");
        assert_eq!(ago(SystemTime::UNIX_EPOCH, SystemTime::now()), "just now");
    }

    #[test]
    fn times_are_read() {
        let check = |text: &str, expected: Option<u64>| {
            assert_eq!(time(text).ok(), expected.map(Duration::from_secs), "{text}");
        };
        check("0s", Some(0));
        check("90m", Some(5400));
        check("36h", Some(129_600));
        check("7d", Some(604_800));
        check("2w", Some(1_209_600));
        for wrong in ["", "7", "d", "-1d", "1.5h", "7 d", "1y", "7é", "99999999999999999d"] {
            check(wrong, None);
        }
    }

    #[test]
    fn a_cache_is_shown() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("cache");
        let shown = |max| table(&Inventory::of(&folder).unwrap(), &folder, max, SystemTime::now());
        let last = format!("in {}\n", folder.display());
        assert_eq!(shown(0), format!("0 B without a bound (`cache.max_mib`), 0 B in use, {last}"));
        let cache = Cache::open(&folder).unwrap();
        let manifest = cache.blobs().put(b"{}").unwrap();
        cache.blobs().remember("registry.example/app:1", &manifest).unwrap();
        cache.blobs().put(b"\0asm....").unwrap();
        let model = cache.store_bytes(&["a model"], 100).unwrap();
        std::fs::write(cache.verdicts().join(format!("{}-1.json", model.digest)), "{ }").unwrap();
        let short: String = manifest.to_string().chars().take(19).collect();
        let expected = format!(
            "REFERENCE               DIGEST               SIZE  LAST USE  IN USE\n\
             registry.example/app:1  {short}  2 B   just now  no\n\
             \n\
             OF NO REFERENCE  FILES  SIZE  IN USE\n\
             components       1      8 B   0 B\n\
             models           1      7 B   7 B\n\
             verdicts         1      3 B   3 B\n\
             \n\
             20 B of 1.0 KiB (`cache.max_mib`), 10 B in use, {last}"
        );
        assert_eq!(shown(1024), expected);
        let json = json(&Inventory::of(&folder).unwrap(), &folder, 0);
        assert_eq!(json["references"][0]["digest"], manifest.to_string());
        assert_eq!(json["references"][0]["missing_blobs"], 0);
        assert_eq!((&json["bytes"], &json["max_bytes"]), (&json!(20), &json!(null)));
        assert_eq!(
            json["unreferenced"][1],
            json!({"kind": "models", "files": 1, "bytes": 7, "in_use_bytes": 7})
        );
        std::fs::remove_file(cache.blobs().path(&manifest)).unwrap();
        assert!(shown(0).contains("  gone\n"), "{}", shown(0));
    }

    #[test]
    fn what_was_removed_is_told() {
        let evicted = Evicted { left_bytes: 5, in_use_bytes: 5, ..Evicted::default() };
        let text = removed(&evicted, Goal::Bytes(100), false);
        assert!(text.starts_with("freed 0 B in 0 files; 5 B are left, 5 B of them in use\n"), "{text}");
        assert!(text.contains("`--all`"), "{text}");
        let references = vec!["app:1".to_owned()];
        let evicted = Evicted { bytes: 2048, files: 3, references, ..evicted };
        let text = removed(&evicted, Goal::All, true);
        assert_eq!(
            text,
            "would forget app:1\nwould free 2.0 KiB in 3 files; 5 B are left, 5 B of them in use\n"
        );
    }
}
