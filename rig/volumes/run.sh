# The whole program on volumes: every volume of a group is a dataset, read through a snapshot while
# it is written to, and whatever cuts a run leaves nothing behind for long.
. ./lib.sh

modules ext4 xfs
thin_pool vg /dev/vdb 1400M
mkdir -p /mnt/plain /mnt/fast /mnt/secret /mnt/store /etc/thrice
for name in plain fast secret; do lvm lvcreate -q -V 400M -T vg/pool -n $name; done
mkfs.ext4 -q /dev/vg/plain
mount /dev/vg/plain /mnt/plain
mkfs.xfs -q /dev/vg/fast
mount /dev/vg/fast /mnt/fast
luks_format /dev/vg/secret
luks_open /dev/vg/secret secret
mkfs.ext4 -q /dev/mapper/secret
mount /dev/mapper/secret /mnt/secret
mkfs.xfs -q /dev/vdc
mount /dev/vdc /mnt/store
printf rig >/etc/thrice/key
for name in plain fast secret; do
    mkdir "/mnt/$name/still"
    echo "of $name" >"/mnt/$name/still/file"
    ln "/mnt/$name/still/file" "/mnt/$name/still/other name"
    sync -f "/mnt/$name"
done

# Numbers in a row, each durable before the next: a copy has all up to some number.
write() {
    n=0
    while [ ! -e /tmp/stop ]; do
        n=$((n + 1))
        echo $n >>"$1"
        sync "$1"
        sleep 0.3
    done
}
is_row() { awk '$0 != NR { exit 1 }' "$1"; }
for v in plain fast secret; do write "/mnt/$v/row" & done

cat >/etc/thrice/thrice.toml <<'TOML'
[host]
name = "rig"

[store.disk]
kind    = "disk"
path    = "/mnt/store"
mounted = true
keep    = { last = 2 }

[root."vg:vg"]
each     = "volume"
pool     = "pool"
luks_key = "/etc/thrice/key"
route    = ["disk"]
TOML
is_clean() {
    [ -z "$(lvm lvs --noheadings -o lv_name vg | grep thrice)" ] &&
        ! grep -q /var/lib/thrice /proc/mounts && ! dmsetup ls | grep -q thrice
}

check everything-has-a-route thrice check
check volumes-are-captured-under-a-writer thrice run
check nothing-is-left is_clean
for v in plain fast secret; do
    thrice restore $v --to /tmp/first-$v
    check $v-comes-back diff -r /mnt/$v/still /tmp/first-$v/still
    check $v-is-of-one-moment is_row /tmp/first-$v/row
    check $v-has-what-was-durable test -s /tmp/first-$v/row
done

echo "# a run that is killed while a snapshot is mounted"
status=0
THRICE_FAULT=batch.logged:1 thrice run || status=$?
check killed test $status = 137
check something-is-left refused is_clean
check the-next-run-goes-on thrice run
check and-clears-what-was-left is_clean

echo "# a volume that is new, one that holds nothing known, one that is gone"
lvm lvcreate -q -V 64M -T vg/pool -n newcomer
mkfs.ext4 -q /dev/vg/newcomer
check a-new-volume-needs-no-naming thrice run --dataset newcomer
lvm lvcreate -q -V 64M -T vg/pool -n raw
status=0
thrice check >/tmp/said || status=$?
check what-cannot-be-read-is-said test $status = 3
check by-its-name grep -q raw /tmp/said
lvm lvremove -q -y vg/raw
lvm lvremove -q -y vg/newcomer
status=0
thrice run --dataset newcomer || status=$?
check a-volume-that-is-gone-stops-its-dataset test $status = 4
check and-its-copies-stay test -d /mnt/store/newcomer

echo "# a volume that is not thin"
lvm lvcreate -q -y -L 8M -n thick vg
check is-not-asked-for-where-a-pool-is thrice check
sed -i '/^pool/d' /etc/thrice/thrice.toml
status=0
thrice check >/tmp/said 2>&1 || status=$?
check is-said test $status = 3
check by-name-and-why grep -q 'vg:vg/thick.*not thin' /tmp/said
check and-parts-of-pools-are-not refused grep -q 'vg/pool\|tmeta\|pmspare' /tmp/said
printf '[dataset.thick]\nvolume = "vg/thick"\nroute = []\nwhy = "scratch"\n' >>/etc/thrice/thrice.toml
check until-it-has-a-reason thrice check
lvm lvremove -q -y vg/thick
sed -i '/^.dataset.thick/,$d' /etc/thrice/thrice.toml

echo "# a tree on a thin volume, read through a snapshot of that"
mkdir /mnt/store/tree
cat >/etc/thrice/tree.toml <<'TOML'
[host]
name  = "tree"
state = "/var/lib/tree"

[store.disk]
kind = "disk"
path = "/mnt/store/tree"

[dataset.tree]
path     = "/mnt/plain"
snapshot = "lvm"
route    = ["disk"]

[dataset.hidden]
path     = "/mnt/secret/still"
snapshot = true
route    = ["disk"]
TOML
tree() { thrice --config /etc/thrice/tree.toml "$@"; }
is_clear() { is_clean && ! grep -q /var/lib/tree /proc/mounts; }
check is-captured tree run --dataset tree
check nothing-is-left-of-it is_clear
check the-tree-is-the-live-one diff -r /mnt/plain/still /mnt/store/tree/tree/still
check the-tree-is-of-one-moment is_row /mnt/store/tree/tree/row
status=0
THRICE_FAULT=batch.logged:1 tree run --dataset tree || status=$?
check killed test $status = 137
check a-snapshot-is-left refused is_clear
check a-run-after-a-kill-goes-on tree run --dataset tree
check and-clears-it is_clear
status=0
tree run --dataset hidden 2>/tmp/said || status=$?
check inside-luks-there-is-none test $status = 1
check which-is-said grep -q 'encrypted inside its volume' /tmp/said
check and-it-is-copied-all-the-same diff -r /mnt/secret/still /mnt/store/tree/hidden
rm -rf /mnt/store/tree

echo "# the pool is at its floor: nothing is made, and pruning goes on"
full() { thrice status --json | tr '{' '\n' | grep -q '"subject":"vg/pool"'; }
check the-pool-has-room refused full
sed -i 's/^route    = \["disk"\]/&\nfloor    = { data = "99%" }/' /etc/thrice/thrice.toml
sed -i 's/last = 2/last = 1/' /etc/thrice/thrice.toml
status=0
thrice run 2>/tmp/said || status=$?
check a-full-pool-holds test $status = 4
check with-its-name grep -q 'pool `vg/pool` has' /tmp/said
check and-is-a-finding full
check and-nothing-is-made is_clean
check pruning-goes-on test "$(thrice versions plain --json | grep -o '"version"' | wc -l)" = 1
sed -i '/^floor/d' /etc/thrice/thrice.toml
check with-room-again thrice run --dataset plain
check the-finding-is-cleared refused full

echo "# snapshots that are kept, and going back to one"
check snapshots-are-made thrice snapshot create
check of-each-volume test "$(thrice snapshot list --json | grep -o '"kind":"kept"' | wc -l)" = 3
thrice check >/tmp/said
check and-is-no-volume-itself refused grep -q thrice-kept /tmp/said
touch /tmp/stop
wait
echo changed >/mnt/plain/still/file
sync -f /mnt/plain
stop='umount /mnt/plain'
start='mount /dev/vg/plain /mnt/plain'
check a-plan-changes-nothing thrice snapshot restore vg/plain
check it-is-still-changed grep -q changed /mnt/plain/still/file
# It starts at the second attempt only: once the swap is taken back.
status=0
thrice snapshot restore vg/plain --yes --stop "$stop" \
    --start "[ -e /tmp/tried ] && $start || { touch /tmp/tried; exit 1; }" || status=$?
check a-step-that-fails test $status = 1
check is-taken-back grep -q changed /mnt/plain/still/file
check back-to-the-snapshot thrice snapshot restore vg/plain --yes --stop "$stop" --start "$start"
check it-is-as-it-was grep -q 'of plain' /mnt/plain/still/file
check what-was-there-is-kept thrice snapshot release vg/plain
for round in 1 2; do thrice snapshot create vg/fast; done
sed -i 's/^luks_key/keep     = { last = 1 }\nluks_key/' /etc/thrice/thrice.toml
check snapshots-are-let-go thrice snapshot prune
check but-the-newest test "$(thrice snapshot list | grep -c 'vg/fast')" = 1

for name in plain fast secret; do umount /mnt/$name; done
cryptsetup close secret
umount /mnt/store
lvm vgchange -q -an vg
check everything-is-let-go test "$(dmsetup ls)" = "No devices found"
