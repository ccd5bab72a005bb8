# shellcheck shell=bash
# plan, apply, verify, rollback, explain.

CHANGES=0 FILES_CHANGED=0 FAILURES=0
declare -A REFUSED=() # settings that the kernel did not take

# report WHAT HOW: a line about a change that was made.
report() {
    [[ $QUIET == yes ]] || printf '%s: %s\n' "$1" "$2"
}

plan() {
    gather_settings
    gather_harmful
    if [[ $JSON == yes ]]; then
        count_rows drift harmful
        show_json "$( ((REPLY > 0)) && printf drift || printf ok)"
        return 0
    fi
    heading plan
    [[ $PLACE != container ]] || tell_container
    show_changes
    show_harmful
    [[ $PLACE != host ]] || show_files
    count_rows drift
    printf '\n%d settings differ. Nothing has been changed.' "$REPLY"
    ((REPLY == 0)) || [[ $PLACE == container ]] || printf ' "tune apply" changes them, "tune explain KEY" says more.'
    printf '\n'
}

verify() {
    local status=ok code=0
    gather_settings
    gather_harmful
    gather_in_force
    count_rows drift harmful
    ((REPLY == 0)) || status=drift code=1
    count_rows failed
    ((REPLY == 0)) || status=error code=2
    if [[ $JSON == yes ]]; then
        show_json "$status"
        return "$code"
    fi
    heading verify
    [[ $PLACE != container ]] || tell_container
    show_rows
    count_rows drift
    case $status in
        ok) printf 'All is as wanted.\n' ;;
        drift)
            printf '%d differ' "$REPLY"
            count_rows harmful
            printf ', %d harmful values.\n' "$REPLY"
            ;;
        error) printf 'Some settings could not be read: see the rows marked "failed".\n' ;;
    esac
    return "$code"
}

tell_container() {
    printf 'In a container nothing is changed. Its host must give what is marked "host", "device" and "unit"; what is marked\n'
    printf '"namespace" can be set for the container itself (docker run --sysctl, securityContext.sysctls of a pod), and\n'
    printf 'limits by --ulimit. If this is a host of its own that was made from an image, say so with --assume-host.\n'
}

apply() {
    local at harmful
    if [[ $PLACE == container ]]; then
        verify
        return
    fi
    need_root apply
    [[ $PLACE != namespace || $STATE_GIVEN == yes ]] ||
        fail "this is $(place_named): name a folder for its old values with --state FOLDER; nothing was changed"
    lock
    refuse_foreign_files
    read_state
    gather_settings
    # What was is noted before anything changes, so that a run which is interrupted can be taken back.
    remember_rows
    ((${#PRISTINE[@]} == 0)) || write_state
    [[ $QUIET == yes ]] || heading apply
    for at in "${!ROW_KEY[@]}"; do
        [[ -n ${ROW_SET[at]} && ${ROW_SCOPE[at]} != unit ]] || continue
        set_row "$at"
    done
    [[ $PLACE == namespace ]] || put_files
    write_last_apply
    gather_harmful
    [[ $QUIET == yes ]] || show_harmful
    count_rows harmful
    harmful=$REPLY
    printf '%d changes' $((CHANGES + FILES_CHANGED))
    ((harmful == 0)) || printf ', %d harmful values left for a person to look at' "$harmful"
    printf '.\n'
    ((FAILURES == 0)) || fail "$FAILURES settings were not taken: see above. What was set stays; \"tune rollback\" takes it back"
}

# remember_rows: notes in PRISTINE and OURS what apply is about to change.
remember_rows() {
    local at
    for at in "${!ROW_KEY[@]}"; do
        [[ -n ${ROW_SET[at]} && ${ROW_SCOPE[at]} != unit ]] || continue
        remember "${ROW_KEY[at]}" "${ROW_NOW[at]}" "${ROW_SET[at]}"
    done
}

# set_row AT: writes one value, and looks whether it holds.
set_row() {
    local key=${ROW_KEY[$1]} set=${ROW_SET[$1]} number=${ROW_SETTING[$1]} problem
    if problem=$(write_setting "$key" "$set"); then
        read_setting "$key"
        compare "$number" "$REPLY" "${ROW_WISH[$1]}"
        if [[ -z $SET ]]; then
            report "$key" "${ROW_NOW[$1]} -> $REPLY"
            CHANGES=$((CHANGES + 1))
            return
        fi
        problem="the kernel was given $set and shows $REPLY"
    fi
    REFUSED[$key]=$problem
    if [[ ${TABLE[$number,optional]:-} == yes ]]; then
        report "$key" "left at ${ROW_NOW[$1]}: $problem"
    else
        printf '%s: not set to %s: %s\n' "$key" "$set" "$problem" >&2
        FAILURES=$((FAILURES + 1))
    fi
}

# write_setting KEY VALUE: fails with the shell's message on standard output.
write_setting() {
    setting_path "$1"
    { printf '%s\n' "$2" >"$REPLY"; } 2>&1
}

# put_files: brings all files to what the state and the rows say.
put_files() {
    local before=$FILES_CHANGED at
    files_wanted
    for at in "${!FILE_NAME[@]}"; do
        put "${FILE_NAME[at]}" "${FILE_TEXT[at]}"
    done
    ((FILES_CHANGED == before)) || reload_systemd
}

# show_files: the files that apply would write or remove.
show_files() {
    local at separator=$'\n'
    read_state
    remember_rows
    files_wanted
    for at in "${!FILE_NAME[@]}"; do
        is_there "${FILE_NAME[at]}" "${FILE_TEXT[at]}" || {
            printf '%s%s: would be written\n' "$separator" "${FILE_NAME[at]}"
            separator=''
        }
    done
}

# rollback: puts back what was before the first apply. A value that somebody else has changed since stays, unless --force.
rollback() {
    local key now conflicts=0 file
    [[ $PLACE != container ]] || fail "this is $(place_named): nothing was ever changed from here"
    need_root rollback
    [[ $PLACE != namespace || $STATE_GIVEN == yes ]] ||
        fail "this is $(place_named): name the folder that apply was given, with --state FOLDER"
    lock
    read_state
    while IFS= read -r key; do
        [[ -n $key ]] || continue
        read_setting "$key"
        now=$REPLY
        if [[ -n $now ]] && ! same_mask "$now" "${PRISTINE[$key]}"; then
            if [[ $FORCE == no ]] && ! is_our_value "$key" "$now"; then
                printf '%s: %s was set by somebody else, and stays (before the first apply it was %s; --force puts that back)\n' \
                    "$key" "$now" "${PRISTINE[$key]}" >&2
                conflicts=$((conflicts + 1))
                continue
            fi
            restore "$key" "$now" || continue
        fi
        unset "PRISTINE[$key]" "OURS[$key]"
    done < <(printf '%s\n' "${!PRISTINE[@]}" | LC_ALL=C sort)
    if [[ $PLACE == host ]]; then
        for file in "$DEVICE_LINK" "$SYSCTL_FILE" "$UNIT_FILE" "$DEVICE_SCRIPT" "$DEVICE_UNIT"; do
            put "$file" ''
        done
        rmdir -- "$ROOT${UNIT_FILE%/*}" "$ROOT${DEVICE_SCRIPT%/*}" 2>/dev/null
        ((FILES_CHANGED == 0)) || reload_systemd
    fi
    rm -f -- "$STATE/last-apply"
    if ((${#PRISTINE[@]} == 0)); then
        rm -f -- "$STATE/values"
    else
        write_state
    fi
    printf '%d changes taken back.\n' $((CHANGES + FILES_CHANGED))
    ((FAILURES == 0)) || fail "$FAILURES values could not be put back: see above"
    ((conflicts == 0)) || return 1
}

# restore KEY NOW: puts back the pristine value of a setting.
restore() {
    local problem
    if problem=$(write_setting "$1" "${PRISTINE[$1]}"); then
        read_setting "$1"
        if same_mask "$REPLY" "${PRISTINE[$1]}"; then
            report "$1" "$2 -> $REPLY"
            CHANGES=$((CHANGES + 1))
            return 0
        fi
        problem="the kernel was given ${PRISTINE[$1]} and shows $REPLY"
    fi
    printf '%s: not put back to %s: %s\n' "$1" "${PRISTINE[$1]}" "$problem" >&2
    FAILURES=$((FAILURES + 1))
    return 1
}

# explain [KEY]: all that is known about a setting, or the list of settings.
explain() {
    local key=$1 number found=no
    if [[ -z $key ]]; then
        for ((number = 1; number <= SETTINGS_COUNT; number++)); do
            printf '%-52s %-20s %s\n' "${TABLE[$number,key]}" "${TABLE[$number,operator]}" "${TABLE[$number,profiles]}"
        done
        for ((number = 1; number <= HARMFUL_COUNT; number++)); do
            printf '%-52s %-20s %s\n' "${HARMFUL[$number,key]}" 'refused' 'all'
        done
        return
    fi
    for ((number = 1; number <= SETTINGS_COUNT; number++)); do
        # A path may be asked for as it stands on this host.
        # shellcheck disable=SC2053
        if [[ $key == "${TABLE[$number,key]}" || $key == ${TABLE[$number,key]} ]]; then
            explain_setting "$number" "$key"
            found=yes
        fi
    done
    for ((number = 1; number <= HARMFUL_COUNT; number++)); do
        [[ ${HARMFUL[$number,key]} == "$key" ]] || continue
        printf '%s: refused where it is %s\n' "$key" "${HARMFUL[$number,harmful]}"
        indent "${HARMFUL[$number,reason]}"
        indent "Better: ${HARMFUL[$number,better]}. Source: ${HARMFUL[$number,source]}"
        found=yes
    done
    [[ $found == yes ]] || fail "explain: nothing is known about \"$key\"; \"tune explain\" without a key lists all"
}

# explain_setting NUMBER KEY
explain_setting() {
    local number=$1 key=$2 name
    printf '%s: %s\n' "$key" "${TABLE[$number,operator]}"
    for name in value least most words computed when; do
        [[ -z ${TABLE[$number,$name]:-} ]] || printf '    %-9s %s\n' "$name" "${TABLE[$number,$name]}"
    done
    if [[ -n ${TABLE[$number,value]:-} ]]; then
        wanted_numbers "$number"
        printf '    %-9s %s, with %d connections, %d MiB and %d cores\n' here "$REPLY" "$CONNECTIONS" "$RAM_MIB" "$CPUS"
    fi
    if [[ $key != *'*'* && ${TABLE[$number,scope]} != unit ]]; then
        read_setting "$key"
        printf '    %-9s %s\n' now "${REPLY:-not on this host}"
    fi
    printf '    %-9s %s\n' profiles "${TABLE[$number,profiles]}" scope "${TABLE[$number,scope]}"
    indent "${TABLE[$number,reason]}"
    indent "Risk: ${TABLE[$number,risk]}"
    indent "Source: ${TABLE[$number,source]}"
}

need_root() {
    [[ -n $ROOT || $EUID -eq 0 ]] || fail "$1 needs root: sudo $0 $1 …; plan and verify need no privilege"
}

# lock: one apply or rollback at a time, until the program ends.
lock() {
    mkdir -p -- "$STATE" || fail "$STATE cannot be made: see above"
    exec 9>"$STATE/lock" || fail "$STATE cannot be written to: see above"
    flock -n 9 || fail "another apply or rollback runs (it holds $STATE/lock)"
}
