# The rig itself: is everything in the guest that suites rely on, and does it work?
. ./lib.sh

modules ext4 xfs
thin_pool vg /dev/vdb 700M
lvm lvcreate -q -V 300M -T vg/pool -n plain
lvm lvcreate -q -V 400M -T vg/pool -n secret
mkdir -p /mnt/plain /mnt/snap /mnt/secret /mnt/store

echo "# a thin snapshot, and which blocks changed since"
mkfs.ext4 -q /dev/vg/plain
mount /dev/vg/plain /mnt/plain
echo then >/mnt/plain/gone
dd if=/dev/zero of=/mnt/plain/block bs=64k count=16 2>/dev/null
sync -f /mnt/plain
lvm lvcreate -q -s -kn -n plain_snap vg/plain
rm /mnt/plain/gone
dd if=/dev/urandom of=/mnt/plain/block bs=64k seek=3 count=1 conv=notrunc,fsync 2>/dev/null
sync -f /mnt/plain
# Writable, so that the journal is replayed.
mount /dev/vg/plain_snap /mnt/snap
check thin-snapshot-holds-what-was grep -q then /mnt/snap/gone
check thin-snapshot-leaves-what-is refused test -e /mnt/plain/gone
umount /mnt/snap
# In the pool, `plain` is 1, `secret` 2 and the snapshot 3: the order in which they were made.
dmsetup message vg-pool-tpool 0 reserve_metadata_snap
thin_delta -m --snap1 1 --snap2 3 /dev/mapper/vg-pool_tmeta >delta
dmsetup message vg-pool-tpool 0 release_metadata_snap
check thin-delta-names-blocks grep -q '<different begin=' delta
check thin-delta-says-what-is-shared grep -q '<same begin=' delta
lvm lvremove -q -y vg/plain_snap

echo "# LUKS in a thin volume, xfs in that, and a snapshot of it all"
luks_format /dev/vg/secret
luks_open /dev/vg/secret secret
mkfs.xfs -q /dev/mapper/secret
mount /dev/mapper/secret /mnt/secret
echo then >/mnt/secret/gone
sync -f /mnt/secret
lvm lvcreate -q -s -kn -n secret_snap vg/secret
rm /mnt/secret/gone
luks_open /dev/vg/secret_snap secret_snap
mount -o nouuid /dev/mapper/secret_snap /mnt/snap
check luks-snapshot-holds-what-was grep -q then /mnt/snap/gone
check luks-snapshot-leaves-what-is refused test -e /mnt/secret/gone
umount /mnt/snap
cryptsetup close secret_snap
lvm lvremove -q -y vg/secret_snap

echo "# the program itself"
check thrice-is-static thrice --version
mkfs.xfs -q /dev/vdc
mount /dev/vdc /mnt/store
mkdir -p /etc/thrice /mnt/plain/photos
echo first >/mnt/plain/photos/one
cat >/etc/thrice/thrice.toml <<'TOML'
[host]
name = "rig"

[store.disk]
kind    = "disk"
path    = "/mnt/store"
mounted = true

[dataset.plain]
path  = "/mnt/plain"
route = ["disk"]
TOML
check thrice-run thrice run
check thrice-status thrice status
thrice restore plain --to /tmp/restored
check thrice-restores-what-it-took diff -r /mnt/plain/photos /tmp/restored/photos
echo second >/mnt/plain/photos/two
status=0
THRICE_FAULT=batch.logged:1 thrice run || status=$?
check thrice-has-its-fault-points test $status = 137
check thrice-recovers thrice run
thrice restore plain --to /tmp/recovered
check thrice-has-lost-nothing diff -r /mnt/plain/photos /tmp/recovered/photos
check strace strace -f -qq -e trace=fsync,syncfs,rename,renameat2 -o trace thrice run
check strace-sees-durable-steps grep -q sync trace

umount /mnt/secret
cryptsetup close secret
umount /mnt/plain
umount /mnt/store
lvm vgchange -q -an vg
check everything-is-let-go test "$(dmsetup ls)" = "No devices found"
