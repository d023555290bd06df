//! HOW-TO-RESTORE.txt: for whoever has only the disk.

use std::path::Path;

/// The text for the store at `path`, of the host `owner`.
pub(crate) fn text(path: &Path, owner: &str, id: &str) -> String {
    let store = tree::escape(path.as_os_str().as_encoded_bytes());
    let owner = tree::escape(owner.as_bytes());
    format!(
        "HOW TO RESTORE FROM THIS DISK, WITHOUT ANY SPECIAL PROGRAM

This directory is a backup of the host \"{owner}\", written by Thrice.
When it was written it was reached as {store}
Everything here is plain files. Nothing is encrypted or packed.

THE NEWEST STATE

Every directory here except .thrice is one dataset, as it was last backed up.
As root, so that owners and modes come along:

    cp -a \"{store}/DATASET/.\" /where/it/shall/go/

One file or folder:

    cp -a \"{store}/DATASET/path/to/it\" /where/it/shall/go/

AN OLDER STATE

What a run replaced or deleted lies, as plain files, in

    {store}/.thrice/history/DATASET/VERSION/

VERSION is a number and a time in UTC: 000012-20261123T050000Z was made by
the run that began on 23 November 2026 at 05:00. The directory holds what that run
took away: the file as it was BEFORE that run. To find an old file:

    find {store}/.thrice/history/DATASET -path '*NAME*'

and copy the one you want with cp -a. \"open\" stands for a run that did not end.
Where a path is not in any VERSION after the day you want, the newest state has it.
A file that was moved lies where it was moved to; the logs, below, tell.

WHAT EXACTLY HAPPENED, AND ALL ATTRIBUTES

    zstdcat {store}/.thrice/log/DATASET/VERSION.jsonl.zst | less

shows one line of JSON per change, with owner, mode, times, extended attributes, and
the BLAKE3 hash of the content (b3sum FILE prints the same for files without holes).
Where this disk cannot hold owners or modes, these lines can.

WITH THRICE

    thrice restore DATASET --to DIR --from STORE [--at TIME]

Store {id}, format 1.
"
    )
}
