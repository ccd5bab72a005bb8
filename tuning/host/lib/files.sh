# shellcheck shell=bash
# The files that keep the settings over a reboot, and the old values. Each is written whole, beside its place, and then put
# there by one rename: a run that is interrupted leaves the old file or the new one.

HEADER='# Written by ringmesh (tuning/host/tune apply). Do not edit: apply writes it anew, rollback removes it.'
UNIT=ringmesh.service
SYSCTL_FILE=/etc/sysctl.d/60-ringmesh.conf
UNIT_FILE=/etc/systemd/system/$UNIT.d/60-host-tuning.conf
DEVICE_SCRIPT=/etc/ringmesh/device-tuning.sh
DEVICE_UNIT=/etc/systemd/system/ringmesh-device-tuning.service
DEVICE_LINK=/etc/systemd/system/multi-user.target.wants/ringmesh-device-tuning.service

# write_file PATH TEXT: PATH is under ROOT already. What an interrupted run left beside it is written over.
write_file() {
    local folder=${1%/*} new=${1%/*}/.${1##*/}.new
    [[ -d $folder ]] || mkdir -p -- "$folder" || fail "$folder cannot be made: see above"
    if ! { printf '%s\n' "$2" >"$new" && sync -- "$new" && mv -f -- "$new" "$1"; }; then
        fail "$1 cannot be written: see above"
    fi
}

# is_ours PATH: whether a file is there and begins with our header, or is our link.
is_ours() {
    [[ ! -L $1 || $(readlink -- "$1") != "$DEVICE_UNIT" ]] || return 0
    first_line "$1"
    [[ $REPLY == "$HEADER" ]]
}

# is_same FILE TEXT: whether a file has exactly this text.
is_same() {
    local text=''
    [[ -f $1 ]] || return 1
    IFS= read -r -d '' text <"$1"
    [[ $text == "$2"$'\n' ]]
}

# --- The old values -------------------------------------------------------------------------------------------------

declare -A PRISTINE=() # by key: the value before the first apply
declare -A OURS=()     # by key: every value that an apply meant to set, with | between; the last is the newest

# read_state: fills PRISTINE and OURS.
read_state() {
    local key pristine ours
    PRISTINE=() OURS=()
    [[ -e $STATE/values ]] || return 0
    while IFS=$'\t' read -r key pristine ours; do
        [[ $key != '#'* && -n $key ]] || continue
        [[ -n $ours ]] || fail "$STATE/values is damaged at $key: mend or remove it by hand; nothing was changed"
        PRISTINE[$key]=$pristine OURS[$key]=$ours
    done <"$STATE/values"
}

# remember KEY NOW SET: notes what a value was and what it will be. The first value that was noted stays.
remember() {
    [[ -n ${PRISTINE[$1]+known} ]] || PRISTINE[$1]=$2
    case "|${OURS[$1]:-}|" in
        *"|$3|") ;;
        *) OURS[$1]=${OURS[$1]:+${OURS[$1]}|}$3 ;;
    esac
}

# is_our_value KEY NOW: whether an apply has set this value.
is_our_value() {
    local value
    local -a values
    IFS='|' read -ra values <<<"${OURS[$1]}"
    for value in "${values[@]}"; do
        ! same_mask "$value" "$2" || return 0
    done
    return 1
}

write_state() {
    local key text='# Values before the first apply, and those that were set since: key, before, set.'
    while IFS= read -r key; do
        text+=$'\n'"$key"$'\t'"${PRISTINE[$key]}"$'\t'"${OURS[$key]}"
    done < <(printf '%s\n' "${!PRISTINE[@]}" | LC_ALL=C sort)
    is_same "$STATE/values" "$text" || write_file "$STATE/values" "$text"
}

# What the last apply was for, and the kernel's counters then: what was lost before is not held against the host as it is.
declare -A LAST_APPLY=()

read_last_apply() {
    local name value
    [[ -r $STATE/last-apply ]] || return 0
    while IFS='=' read -r name value; do
        [[ -z $name ]] || LAST_APPLY[$name]=$value
    done <"$STATE/last-apply"
}

write_last_apply() {
    local name text="profiles=$PROFILES"$'\n'"connections=$CONNECTIONS"$'\n'"boot_id=$BOOT_ID"
    text+=$'\n'"refused=${!REFUSED[*]}"
    for name in $COUNTERS SoftnetDrops; do
        counter "$name"
        text+=$'\n'"$name=${REPLY:-0}"
    done
    is_same "$STATE/last-apply" "$text" || write_file "$STATE/last-apply" "$text"
}

# --- What is read at boot -------------------------------------------------------------------------------------------

# sysctl_text: the lines of our sysctl.d file: the newest value of each key that an apply has set.
sysctl_text() {
    local key lines=''
    while IFS= read -r key; do
        [[ -n $key && $key != /* && -z ${REFUSED[$key]:-} ]] || continue
        # A key of a module that is not loaded yet is no error.
        lines+=$'\n'"-$key = ${OURS[$key]##*|}"
    done < <(printf '%s\n' "${!OURS[@]}" | LC_ALL=C sort)
    REPLY=${lines:+$HEADER$lines}
}

# unit_text: our drop-in for the gateway's unit.
unit_text() {
    local at lines=''
    for at in "${!ROW_KEY[@]}"; do
        [[ ${ROW_SCOPE[at]} == unit && -n ${ROW_SET[at]} ]] || continue
        lines+=$'\n'"${ROW_KEY[at]}=${ROW_SET[at]}"
    done
    REPLY=${lines:+$HEADER$'\n'[Service]$lines}
}

# device_script_text: what sets the values of devices after a boot, which sysctl.d does not keep.
device_script_text() {
    local key lines='' irq
    while IFS= read -r key; do
        [[ $key == /* && -z ${REFUSED[$key]:-} ]] || continue
        if [[ $key == /proc/irq/* ]]; then
            # The numbers of interrupts may be others after a boot.
            irq=${key#/proc/irq/}
            irq=${irq%%/*}
            interrupt_name "$irq"
            lines+=$'\n'"grep -Eq '^ *$irq:.* $REPLY\$' /proc/interrupts && echo '${OURS[$key]##*|}' >'$key'"
        else
            lines+=$'\n'"[ ! -e '$key' ] || echo '${OURS[$key]##*|}' >'$key'"
        fi
    done < <(printf '%s\n' "${!OURS[@]}" | LC_ALL=C sort -V)
    REPLY=${lines:+$HEADER$lines$'\nexit 0'}
}

device_unit_text() {
    REPLY="$HEADER
[Unit]
Description=Devices tuned for ringmesh: what sysctl.d does not keep
After=network-online.target systemd-modules-load.service
Wants=network-online.target
Before=$UNIT

[Service]
Type=oneshot
ExecStart=/bin/sh $DEVICE_SCRIPT
RemainAfterExit=yes

[Install]
WantedBy=multi-user.target"
}

# unit_value NAME with-ours|without-ours|only-ours: a limit as the unit and its drop-ins say it; the last line counts.
UNIT_FILES=()
unit_value() {
    local name=$1 which=$2 file line value=''
    ((${#UNIT_FILES[@]} > 0)) || find_unit_files
    for file in "${UNIT_FILES[@]}"; do
        [[ -n $file ]] || continue
        if [[ $file == "$ROOT$UNIT_FILE" ]]; then
            [[ $which != without-ours ]] || continue
        else
            [[ $which != only-ours ]] || continue
        fi
        while IFS= read -r line || [[ -n $line ]]; do
            trim "$line"
            [[ $REPLY == "$name"=* || $REPLY == "$name ="* ]] || continue
            trim "${REPLY#*=}"
            value=$REPLY
        done <"$file"
    done
    in_bytes "${value##*:}"
}

# find_unit_files: the unit and its drop-ins in UNIT_FILES, in the order in which they count. The first is empty, so that
# the search is made once only.
find_unit_files() {
    local folder folders
    local -a FILES
    UNIT_FILES=('')
    folders=(/etc/systemd/system /run/systemd/system /usr/local/lib/systemd/system /usr/lib/systemd/system /lib/systemd/system)
    for folder in "${folders[@]}"; do
        if [[ -e $ROOT$folder/$UNIT ]]; then
            UNIT_FILES+=("$ROOT$folder/$UNIT")
            break
        fi
    done
    files_in_order "${folders[@]/%//$UNIT.d}"
    UNIT_FILES+=("${FILES[@]}")
}

# in_bytes TEXT: "8M" as a number; what is no number stays.
in_bytes() {
    local number=${1%[KMGT]}
    REPLY=$1
    [[ $number =~ ^[0-9]+$ && $number != "$1" ]] || return 0
    case $1 in
        *K) REPLY=$((number << 10)) ;;
        *M) REPLY=$((number << 20)) ;;
        *G) REPLY=$((number << 30)) ;;
        *T) REPLY=$((number << 40)) ;;
    esac
}

# files_wanted: each file of ours with the text that it should have, in FILE_NAME and FILE_TEXT; no text, no file.
FILE_NAME=() FILE_TEXT=()
files_wanted() {
    local device
    FILE_NAME=() FILE_TEXT=()
    sysctl_text
    FILE_NAME+=("$SYSCTL_FILE") FILE_TEXT+=("$REPLY")
    unit_text
    FILE_NAME+=("$UNIT_FILE") FILE_TEXT+=("$REPLY")
    device_script_text
    device=$REPLY
    FILE_NAME+=("$DEVICE_SCRIPT") FILE_TEXT+=("$device")
    device_unit_text
    FILE_NAME+=("$DEVICE_UNIT") FILE_TEXT+=("${device:+$REPLY}")
    # What `systemctl enable` makes.
    FILE_NAME+=("$DEVICE_LINK") FILE_TEXT+=("${device:+link to $DEVICE_UNIT}")
}

# is_there FILE TEXT: whether a file of ours is as it should be.
is_there() {
    case $2 in
        '') [[ ! -e $ROOT$1 && ! -L $ROOT$1 ]] || ! is_ours "$ROOT$1" ;;
        'link to '*) [[ -L $ROOT$1 && $(readlink -- "$ROOT$1") == "${2#link to }" ]] ;;
        *) is_same "$ROOT$1" "$2" ;;
    esac
}

# put FILE TEXT: brings a file of ours to this text, or away when there is none, and counts the change.
put() {
    ! is_there "$1" "$2" || return 0
    case $2 in
        '')
            rm -f -- "$ROOT$1"
            report "$1" 'removed'
            ;;
        'link to '*)
            if ! { mkdir -p -- "$ROOT${1%/*}" && ln -sfn -- "${2#link to }" "$ROOT$1"; }; then
                fail "$1 cannot be made: see above"
            fi
            report "$1" "$2"
            ;;
        *)
            write_file "$ROOT$1" "$2"
            report "$1" 'written'
            ;;
    esac
    FILES_CHANGED=$((FILES_CHANGED + 1))
}

# refuse_foreign_files: before anything is changed, ends the program when a file of somebody else stands where ours belongs.
refuse_foreign_files() {
    local file
    for file in "$SYSCTL_FILE" "$UNIT_FILE" "$DEVICE_SCRIPT" "$DEVICE_UNIT"; do
        if [[ -e $ROOT$file || -L $ROOT$file ]] && ! is_ours "$ROOT$file"; then
            fail "$file was not written by this program: move it away first; nothing was changed"
        fi
    done
}

# reload_systemd: tells it that units have changed, where it runs.
reload_systemd() {
    [[ -z $ROOT && -d /run/systemd/system ]] || return 0
    systemctl daemon-reload || printf 'systemctl daemon-reload failed: see above\n' >&2
}
