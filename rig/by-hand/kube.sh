#!/bin/sh
# kube.sh THRICE URL ADMIN USER: against a real kube-apiserver at URL with nothing in it. ADMIN and
# USER are bearer tokens, of somebody who may do everything and of a user `thrice` who may do
# nothing. See README.md of the rig. LVM is the stand-in of the tests; this script stands in for the
# controllers, which are no part of the API server.
set -eu
program=$1 url=$2
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
failed=0
loop=''
# shellcheck disable=SC2329
end() {
    if [ -n "$loop" ]; then
        kill "$loop" 2>/dev/null || true
        wait "$loop" 2>/dev/null || true
    fi
    rm -rf "$work"
}
trap end EXIT
check() {
    name=$1
    shift
    if "$@" >"$work/said" 2>&1; then
        echo "ok $name"
    else
        echo "FAIL $name: $*"
        cat "$work/said"
        failed=1
    fi
}
says() {
    wanted=$1 text=$2
    shift 2
    status=0
    "$@" >"$work/out" 2>&1 || status=$?
    cat "$work/out"
    case $wanted in ok) [ $status = 0 ] ;; *) [ $status != 0 ] ;; esac && grep -q -- "$text" "$work/out"
}
kubeconfig() {
    cat >"$work/$1" <<EOF
{"apiVersion":"v1","kind":"Config","current-context":"c",
"clusters":[{"name":"c","cluster":{"server":"$url","insecure-skip-tls-verify":true}}],
"users":[{"name":"u","user":{"token":"$2"}}],
"contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}]}
EOF
}
kubeconfig admin "$3"
kubeconfig user "$4"
admin() { HOME=$work KUBECONFIG=$work/admin kubectl "$@"; }
thrice() {
    HOME=$work KUBECONFIG=$work/user THRICE_CONFIG=$work/thrice.toml PATH=$work/tools:$PATH \
        "$program" "$@"
}

mkdir -p "$work/tools/pve/vm-9999-pvc-11aa" "$work/state" "$work/store"
cp "$here/../../tests/fixtures/lvm.sh" "$work/tools/lvm"
chmod 755 "$work/tools/lvm"
for file in uuid tags active; do echo >"$work/tools/pve/vm-9999-pvc-11aa/$file"; done
echo disk >"$work/tools/pve/vm-9999-pvc-11aa/uuid"
cat >"$work/thrice.toml" <<EOF
[host]
name = "box"
state = "$work/state"
[store.sda]
kind = "disk"
path = "$work/store"
[root."vg:pve"]
each = "volume"
names = "kubernetes"
route = ["sda"]
EOF

admin create namespace web >/dev/null
admin apply -f - >/dev/null <<EOF
apiVersion: v1
kind: PersistentVolume
metadata: {name: pvc-11aa}
spec:
  accessModes: [ReadWriteOnce]
  capacity: {storage: 1Gi}
  claimRef: {apiVersion: v1, kind: PersistentVolumeClaim, namespace: web, name: data, uid: 11aa}
  csi: {driver: csi.proxmox.sinextra.dev, volumeHandle: c/pve-1/local-lvm/vm-9999-pvc-11aa}
  persistentVolumeReclaimPolicy: Retain
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: nextcloud, namespace: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: nextcloud}}
  template:
    metadata: {labels: {app: nextcloud}}
    spec:
      containers: [{name: main, image: x}]
      volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]
EOF
status() { admin patch "$1" "$2" -n web --subresource=status --type=merge -p "{\"status\":$3}" >/dev/null; }
status pv pvc-11aa '{"phase":"Bound"}'
of() { admin get "$1" "$2" -n web -o "jsonpath={$3}"; }
owner() {
    echo "ownerReferences: [{apiVersion: apps/v1, kind: $1, name: $2, controller: true, uid: $(of "$1" "$2" .metadata.uid)}]"
}
admin apply -f - >/dev/null <<EOF
apiVersion: apps/v1
kind: ReplicaSet
metadata:
  name: nextcloud-5d4f
  namespace: web
  $(owner Deployment nextcloud)
spec:
  replicas: 2
  selector: {matchLabels: {app: nextcloud}}
  template:
    metadata: {labels: {app: nextcloud}}
    spec:
      containers: [{name: main, image: x}]
EOF
attached() {
    admin apply -f - >/dev/null <<EOF
apiVersion: storage.k8s.io/v1
kind: VolumeAttachment
metadata: {name: csi-1}
spec: {attacher: csi.proxmox.sinextra.dev, nodeName: worker, source: {persistentVolumeName: pvc-11aa}}
EOF
    for number in 1 2; do
        admin apply -f - >/dev/null <<EOF
apiVersion: v1
kind: Pod
metadata:
  name: nextcloud-5d4f-$number
  namespace: web
  labels: {app: nextcloud}
  $(owner ReplicaSet nextcloud-5d4f)
spec:
  containers: [{name: main, image: x}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]
EOF
    done
}
detached() {
    admin delete pods -n web -l app=nextcloud --force --grace-period=0 --wait=false >/dev/null 2>&1
    admin delete volumeattachment csi-1 --ignore-not-found >/dev/null
}
# What the controllers would do, one round.
control() {
    replicas=$(of deployment nextcloud .spec.replicas)
    status deployment nextcloud "{\"observedGeneration\":$(of deployment nextcloud .metadata.generation)}"
    admin scale replicaset nextcloud-5d4f -n web --replicas="$replicas" >/dev/null
    status replicaset nextcloud-5d4f "{\"observedGeneration\":$(of replicaset nextcloud-5d4f .metadata.generation)}"
    if [ "$replicas" = 0 ]; then detached; else attached; fi
}
controllers() { while :; do control || true; sleep 0.5; done; }
replicas() { [ "$(of deployment nextcloud .spec.replicas)" = "$1" ]; }
no_record() { [ -z "$(ls -A "$work/state/stopped" 2>/dev/null)" ]; }
control

echo "server $(admin version -o json | sed -n '/serverVersion/,$s/.*"gitVersion": "\(.*\)".*/\1/p')"
check 'a user without rights: the volume has its own name, and that is said' \
    says ok 'Kubernetes does not say.*orbidden' thrice check
admin apply -f - >/dev/null <"$here/kube-rights.yaml"
check 'with the rights of the guide it is called by its claim' says ok 'web.data' thrice check
check 'a snapshot' says ok 'number 1' thrice snapshot create
volume=pve/vm-9999-pvc-11aa
check 'the plan' says ok 'scale web/deployment/nextcloud from 2 to 0' \
    thrice snapshot restore $volume --kubernetes
check 'without controllers no pod ends: scaled back' says fail 'everything is as it was before' \
    thrice snapshot restore $volume --kubernetes --wait=4 --yes
check 'it has its replicas' replicas 2
check 'no record is left' no_record
controllers &
loop=$!
sleep 3
check 'a swap' says ok 'done; what was there is kept' \
    thrice snapshot restore $volume --kubernetes --wait=60 --yes
check 'it has its replicas' replicas 2
sleep 3
echo 'lvcreate*' >"$work/tools/fails"
check 'a volume that cannot be swapped: scaled back' says fail 'everything is as it was before' \
    thrice snapshot restore $volume --kubernetes --wait=60 --yes
rm "$work/tools/fails"
check 'then it has its replicas' replicas 2
sleep 3
echo 'lvcreate*' >"$work/tools/hangs"
HOME=$work KUBECONFIG=$work/user THRICE_CONFIG=$work/thrice.toml PATH=$work/tools:$PATH \
    "$program" snapshot restore $volume --kubernetes --wait=60 --yes >/dev/null 2>&1 &
cut=$!
while [ ! -e "$work/tools/hanging" ]; do sleep 0.2; done
kill -9 $cut
rm "$work/tools/hangs"
check 'killed in the middle: it is stopped' replicas 0
check 'the next run starts it' says fail 'scaled from 0 to 2' thrice run
check 'then it has its replicas' replicas 2
check 'then no record is left' no_record
exit $failed
