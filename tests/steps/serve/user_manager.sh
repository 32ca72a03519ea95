# Run a command beside a systemd user manager of its own, in a mount namespace of its own, so that
# nothing of this machine is touched. Usage: unshare -m bash user_manager.sh HOME COMMAND...
export HOME=$1
shift
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system /run/user/0
chmod 700 /run/user/0
mount -t tmpfs tmpfs /var/lib/systemd
mkdir /var/lib/systemd/linger
touch "/var/lib/systemd/linger/$(id -un)"
export XDG_RUNTIME_DIR=/run/user/0
unset DBUS_SESSION_BUS_ADDRESS XDG_CONFIG_HOME
/lib/systemd/systemd --user >"$HOME/systemd.log" 2>&1 &
for _ in $(seq 100); do
    systemctl --user show-environment >/dev/null 2>&1 && break
    sleep 0.1
done
"$@"
status=$?
systemctl --user exit
wait
exit $status
