#!/bin/sh
# The first process of user-mode Linux: its root is the host's, read-only (hostfs). Lays a layer in
# memory over it and becomes the agent in it. Words on the kernel's command line: uml.agent=PATH of
# agent.py, uml.port=DEVICE on which the host speaks to it, uml.python=PATH of its interpreter,
# uml.project=ROOT of this project.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp LC_ALL=C.UTF-8
mount -t proc proc /proc
for word in $(cat /proc/cmdline); do
  case "$word" in
    uml.agent=*) agent=${word#*=} ;;
    uml.port=*) port=${word#*=} ;;
    uml.python=*) python=${word#*=} ;;
    uml.project=*) project=${word#*=} ;;
  esac
done
set -e
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work overlay /mnt/root
cd /mnt/root
mount -t proc proc proc
mount -t sysfs sys sys
mount -t devtmpfs dev dev
mkdir -p dev/shm dev/pts srv
mount -t devpts -o mode=620,ptmxmode=666 devpts dev/pts
for place in dev/shm tmp run var/tmp mnt; do
  mount -t tmpfs tmpfs $place
  chmod 1777 $place
done
# What the server exports is in memory, so that its cache is always warm.
mount -t tmpfs -o size=80%,mode=755 tmpfs srv
# Bring the project back if it lies in one of those.
if [ ! -e ".$project" ]; then
  mkdir -p ".$project"
  mount --bind "$project" ".$project"
fi
mount -t cgroup2 cgroup2 sys/fs/cgroup
echo +memory > sys/fs/cgroup/cgroup.subtree_control
ip link set lo up
hostname machine
exec chroot . "$python" -I "$agent" "$port"
