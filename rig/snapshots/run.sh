# Snapshots of LVM thin volumes, plain and encrypted: the storage's conformance suite, floors,
# cuts between any two steps, swaps.
. ./lib.sh

modules dm_thin_pool dm_snapshot dm_crypt ext4 xfs
lvm vgcreate -q vg /dev/vdb
snapshots vg-suite vg
