# Many volumes of which few change: one to which nothing was written costs no snapshot, no mount and
# no walk; and nothing that was written is ever taken for nothing.
. ./lib.sh

modules ext4 xfs
thin_pool vg /dev/vdb 1800M
mkdir -p /mnt/store /etc/thrice /tmp/bin
mkfs.xfs -q /dev/vdc
mount /dev/vdc /mnt/store
printf rig >/etc/thrice/key
# `lazy`: the kernel would go on writing inode tables for minutes.
ext4() { mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 "$1"; }
names=$(seq -w 1 17 | sed 's/^/v/')
for name in $names still; do
    lvm lvcreate -q -V 32M -T vg/pool -n "$name" 2>/dev/null
    ext4 "/dev/vg/$name"
done
lvm lvcreate -q -V 320M -T vg/pool -n fast 2>/dev/null
mkfs.xfs -q /dev/vg/fast
lvm lvcreate -q -V 64M -T vg/pool -n secret 2>/dev/null
luks_format /dev/vg/secret
luks_open /dev/vg/secret secret
ext4 /dev/mapper/secret
for name in $names fast; do
    mkdir "/mnt/$name"
    mount "/dev/vg/$name" "/mnt/$name"
done
mkdir /mnt/secret
mount /dev/mapper/secret /mnt/secret
for name in $names fast secret; do echo "of $name" >"/mnt/$name/file"; done

cat >/etc/thrice/thrice.toml <<'TOML'
[host]
name = "rig"

[store.disk]
kind    = "disk"
path    = "/mnt/store"
mounted = true

[root."vg:vg"]
each     = "volume"
luks_key = "/etc/thrice/key"
route    = ["disk"]
TOML

# Every command of LVM's is counted.
cat >/tmp/bin/lvm <<'SH'
#!/bin/sh
echo "$*" >>/tmp/commands
exec /usr/sbin/lvm "$@"
SH
chmod +x /tmp/bin/lvm

# took SNAPSHOTS ARGUMENT…: runs, and succeeds when that is well and made so many snapshots.
took() {
    expected=$1
    shift
    : >/tmp/commands
    begin=$(cut -d' ' -f1 /proc/uptime)
    PATH=/tmp/bin:$PATH thrice run --json "$@" >/tmp/said 2>/tmp/errors || { cat /tmp/errors; return 1; }
    end=$(cut -d' ' -f1 /proc/uptime)
    made=$(grep -c '^lvcreate -s' /tmp/commands) || true
    echo "   $made snapshots, $(wc -l </tmp/commands) commands of LVM's," \
        "$(awk "BEGIN { printf \"%.1f\", $end - $begin }") s;" \
        "$(tail -1 /tmp/said | grep -o '"unwritten":[0-9]*')" \
        "$(sed -n 's,^lvcreate -s.* vg/,,p' /tmp/commands | tr '\n' ' ')"
    [ "$made" = "$expected" ]
}
# has VOLUME FILE TEXT: the newest copy has it.
has() {
    rm -rf /tmp/back
    thrice restore "$1" --to /tmp/back >/dev/null 2>&1 && grep -q "$3" "/tmp/back/$2"
}
success() { thrice status --json | tr '{' '\n' | grep '"last_success"' | head -1; }

check the-first-run-captures-all took 20
echo "# xfs writes when it is frozen what it had not: it is looked into once more"
check the-second-only-xfs took 1
before=$(success)
sleep 1.1
check then-nothing-is-touched took 0
check and-all-of-it-is-current test "$before" != "$(success)"
check and-status-says-so thrice status

echo "# two of twenty change, and nothing of it has come to a device"
echo changed >/mnt/v03/file
chmod 600 /mnt/v07/file
check two-cost-two took 2
check the-change-is-there has v03 file changed
check the-mode-is-there has v07 file of
check the-copy-has-the-mode test "$(stat -c %a /tmp/back/file)" = 600
check and-then-nothing took 0

echo "# whatever way it is written"
echo changed >/mnt/secret/file
check inside-luks took 1
check luks-is-there has secret file changed
check luks-is-still took 0
echo changed >/mnt/fast/file
check xfs took 1
check xfs-is-there has fast file changed
check xfs-once-more took 1
check xfs-is-still took 0
printf x | dd of=/mnt/v06/file conv=notrunc bs=1 2>/dev/null
check one-byte-in-its-place took 1
check which-is-there-too has v06 file 'xf v06'
mkdir /mnt/still
mount /dev/vg/still /mnt/still
echo new >/mnt/still/file
umount /mnt/still
check not-mounted-any-more took 1
check what-it-has-is-there has still file new
rm /mnt/v05/file
fstrim /mnt/v05 2>/dev/null || true
check what-is-gone took 1
umount /mnt/v02
unshare -m sh -c 'mount --make-rprivate /; mount /dev/vg/v02 /mnt/v02; echo elsewhere >/mnt/v02/file; sleep 30' &
sleep 2
check in-another-namespace took 1
check which-is-there has v02 file elsewhere
wait
mount /dev/vg/v02 /mnt/v02
check here-again took 1

echo "# a writer that never rests"
(while [ ! -e /tmp/stop ]; do echo line >>/mnt/v09/row && sync /mnt/v09/row; done) &
for round in first second third; do check "$round-time" took 1; done
touch /tmp/stop
wait
# Reading it sets its access time.
cp /mnt/v09/row /tmp/row
check once-more took 1
check and-now-it-rests took 0
rm -rf /tmp/back
thrice restore v09 --to /tmp/back >/dev/null 2>&1
check all-of-it-is-there cmp /tmp/row /tmp/back/row

echo "# in doubt"
check asked-for took 1 --full --dataset v01
umount /mnt/v11
lvm lvchange -an vg/v11
check not-active took 1
lvm lvchange -ay vg/v11
check another-device took 1
mount /dev/vg/v11 /mnt/v11
check mounted-again took 1
check and-nothing-again took 0
echo half >/mnt/v04/file
status=0
THRICE_FAULT=batch.logged:1 thrice run >/dev/null 2>&1 || status=$?
check killed test $status = 137
check a-capture-that-was-cut-is-made-again took 1
check which-has-all has v04 file half
check and-once took 0
