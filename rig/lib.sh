# What suites share. A suite begins with `. ./lib.sh`.

# A step that fails and is no check ends the suite. Its status says so, and says whether a check
# has failed.
set -eu
failed=0
trap 'status=$?; if [ $status = 0 ]; then status=$failed; fi; exit $status' EXIT

# check NAME COMMAND…: `ok NAME` when the command succeeds; else `FAIL NAME`, and the suite goes on.
check() {
    name=$1
    shift
    if "$@"; then
        echo "ok $name"
    else
        echo "FAIL $name: status $?: $*"
        failed=1
    fi
}

# refused COMMAND…: succeeds when the command does not.
refused() {
    if "$@"; then return 1; fi
}

# modules NAME…
modules() {
    for module in "$@"; do modprobe "$module"; done
}

# thin_pool VG DISK SIZE: a volume group on the disk, with a thin pool of this size in it.
thin_pool() {
    modules dm_thin_pool dm_snapshot
    lvm vgcreate -q "$1" "$2"
    lvm lvcreate -q -y -L "$3" -T "$1/pool"
}

# luks_format VOLUME / luks_open VOLUME NAME: the passphrase is `rig`. Argon2 would take minutes
# on an emulated processor.
luks_format() {
    modules dm_crypt
    printf rig | cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 \
        --pbkdf-force-iterations 1000 "$1" -
}
luks_open() {
    printf rig | cryptsetup open "$1" "$2" -
}
