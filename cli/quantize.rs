//! `pagoda quantize MODEL OUT --format nf4|awq|gptq`: a dense checkpoint into a quantised one, rounded to nearest.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use pagoda::hub::Report as _;
use pagoda_engine::weights::quant::quantize::export::{ExportFormat, export};

use super::{context, models, progress::Progress, terminal};

/// Arguments of `pagoda quantize`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Dense model: a folder of safetensors, a hub id or an alias
    model: String,
    /// Folder to write; it must not hold anything
    out: PathBuf,
    /// nf4 (bitsandbytes, blocks of 64), awq (4 bits with zero points) or gptq (4 bits, symmetric)
    #[arg(long, value_name = "WORD")]
    format: String,
    /// Columns of a group, for awq and gptq
    #[arg(long, value_name = "N", default_value_t = 128)]
    group_size: usize,
    /// Quantise the factors of nf4's blocks as well
    #[arg(long)]
    double_quant: bool,
}

/// Runs the command.
pub fn run(arguments: &Arguments, file: Option<&Path>) -> Result<()> {
    let format = format_of(arguments)?;
    let config = context::quiet_config(&BTreeMap::new(), file)?;
    let target = models::target_for(&config, Some(&arguments.model))?;
    let mut progress = Progress::new();
    let located = target.locate(&context::hub()?, &mut progress)?;
    let mut is_first = true;
    let exported = export(&located.path, &arguments.out, format, &mut |done, total| {
        if std::mem::take(&mut is_first) {
            progress.start(&format!("quantising {}", located.name), Some(total as u64));
        }
        progress.advance(done as u64);
    })?;
    progress.finish();
    terminal::note(&format!(
        "{} matrices to {}, {} to {}",
        exported.num_quantised,
        arguments.format,
        terminal::bytes(exported.before_bytes as u64),
        terminal::bytes(exported.after_bytes as u64)
    ));
    terminal::print(&format!("{}\n", arguments.out.display()))?;
    Ok(())
}

fn format_of(arguments: &Arguments) -> Result<ExportFormat> {
    let group = arguments.group_size;
    if ![32, 64, 128].contains(&group) {
        bail!("--group-size: `{group}`: expected 32, 64 or 128");
    }
    match arguments.format.as_str() {
        "nf4" => Ok(ExportFormat::Nf4 { double: arguments.double_quant }),
        "awq" => Ok(ExportFormat::Awq { group }),
        "gptq" => Ok(ExportFormat::Gptq { group }),
        other => bail!("--format: `{other}`: expected nf4, awq or gptq"),
    }
}
