# Images of volumes: what cannot be read as files is kept block by block, and comes back as it was.
. ./lib.sh

modules ext4 xfs
thin_pool vg /dev/vdb 400M
mkdir -p /mnt/plain /mnt/store /etc/thrice
for name in disk plain off secret; do lvm lvcreate -q -V 48M -T vg/pool -n $name; done
# A guest's disk: it begins with no file system, and has a hole in the middle.
dd if=/dev/urandom of=/dev/vg/disk bs=1M count=9 2>/dev/null
dd if=/dev/urandom of=/dev/vg/disk bs=1M count=1 seek=46 2>/dev/null
for name in plain off; do mkfs.ext4 -q /dev/vg/$name; done
mount /dev/vg/plain /mnt/plain
echo 'of plain' >/mnt/plain/file
sync -f /mnt/plain
lvm lvchange -an vg/off
luks_format /dev/vg/secret
sync
mkfs.xfs -q /dev/vdc
mount /dev/vdc /mnt/store

cat >/etc/thrice/thrice.toml <<'TOML'
[host]
name = "rig"

[store.disk]
kind    = "disk"
path    = "/mnt/store"
mounted = true

[root."vg:vg"]
each  = "volume"
image = "unreadable"
route = ["disk"]
TOML
is_clean() {
    [ -z "$(lvm lvs --noheadings -o lv_name vg | grep thrice)" ] &&
        ! grep -q /var/lib/thrice /proc/mounts && ! dmsetup ls | grep -q thrice
}
blocks() { stat -c %b "$1"; }

check everything-has-a-route thrice check
check all-is-captured thrice run
check nothing-is-left is_clean
check a-disk-is-an-image cmp /dev/vg/disk /mnt/store/disk/disk.img
# Ten of its 48 MiB are data; xfs keeps what it has reserved behind them.
check its-zeros-are-holes test "$(blocks /mnt/store/disk/disk.img)" -lt 49152
check what-is-encrypted-is-kept-so cmp /dev/vg/secret /mnt/store/secret/secret.img
check files-stay-files grep -q 'of plain' /mnt/store/plain/file
check of-a-volume-that-is-off-too test -d /mnt/store/off/lost+found

thrice run --json --dataset disk >/tmp/said
check what-is-the-same-is-not-written grep -q '"bytes_written":{"disk":0}' /tmp/said
check and-makes-no-version test "$(thrice versions disk --json | grep -o '"version":' | wc -l)" = 1
dd if=/dev/urandom of=/dev/vg/disk bs=64k count=1 seek=9 conv=fsync 2>/dev/null
thrice run --json --dataset disk >/tmp/said
written=$(grep -o '"bytes_written":{"disk":[0-9]*' /tmp/said | tail -n 1 | grep -o '[0-9]*$')
echo "# 65536 bytes changed, $written were written"
check a-block-costs-a-block test "$written" -gt 0 -a "$written" -le 262144
check it-is-the-disk cmp /dev/vg/disk /mnt/store/disk/disk.img

echo "# a run that is killed while it reads"
dd if=/dev/urandom of=/dev/vg/disk bs=64k count=1 seek=99 conv=fsync 2>/dev/null
status=0
THRICE_FAULT=batch.logged:1 thrice run --dataset disk || status=$?
check killed test $status = 137
check something-is-left refused is_clean
check the-next-run-goes-on thrice run --dataset disk
check and-clears-what-was-left is_clean
check it-is-the-disk-again cmp /dev/vg/disk /mnt/store/disk/disk.img

echo "# the documented way back"
thrice restore disk --to /tmp/back
lvm lvcreate -q -V 48M -T vg/pool -n again
dd if=/tmp/back/disk.img of=/dev/vg/again bs=4M conv=sparse,fsync 2>/dev/null ||
    dd if=/tmp/back/disk.img of=/dev/vg/again bs=4M conv=fsync 2>/dev/null
check it-comes-back cmp /dev/vg/disk /dev/vg/again
lvm lvremove -q -y vg/again

echo "# files are not replaced by an image unless a person says so"
sed -i 's/^image.*/image = true/' /etc/thrice/thrice.toml
status=0
thrice run --dataset plain 2>/tmp/said || status=$?
check it-is-asked test $status = 4
check with-the-way-out grep -q 'accept plain' /tmp/said
check and-the-files-stay test -f /mnt/store/plain/file
check a-person-says-so thrice run --dataset plain --accept plain
check it-is-an-image test -f /mnt/store/plain/plain.img
check nothing-is-left-of-it is_clean

echo "# a device that fails in the middle"
size=$(blockdev --getsz /dev/vg/disk)
half=$((size / 2))
table() {
    echo "0 $half linear /dev/vg/disk 0"
    echo "$half $((size - half)) $1"
}
table "linear /dev/vg/disk $half" | dmsetup create bad
dmsetup mknodes bad
cat >>/etc/thrice/thrice.toml <<'TOML'

[dataset.bad]
device = "/dev/mapper/bad"
route  = ["disk"]
TOML
check a-device-is-an-image thrice run --dataset bad
dd if=/dev/urandom of=/dev/mapper/bad bs=64k count=1 conv=fsync 2>/dev/null
dmsetup suspend bad
table error | dmsetup load bad
dmsetup resume bad
cp /mnt/store/bad/bad.img /tmp/before
status=0
thrice run --dataset bad || status=$?
check it-is-said test $status = 1
check its-image-stays cmp /tmp/before /mnt/store/bad/bad.img
dmsetup remove bad

umount /mnt/plain
umount /mnt/store
lvm vgchange -q -an vg
check everything-is-let-go test "$(dmsetup ls)" = "No devices found"
