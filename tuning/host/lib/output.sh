# shellcheck shell=bash
# How rows are shown to people and to programs.

# heading VERB: what the numbers are for.
heading() {
    printf 'ringmesh host tuning, %s: profile %s, %d connections; this is %s with %d MiB and %d cores\n' \
        "$1" "$PROFILES" "$CONNECTIONS" "$(place_named)" "$RAM_MIB" "$CPUS"
}

# show_rows: all rows as a table.
show_rows() {
    local at key=7 now=3 wanted=6
    for at in "${!ROW_KEY[@]}"; do
        ((${#ROW_KEY[at]} <= key)) || key=${#ROW_KEY[at]}
        ((${#ROW_NOW[at]} <= now)) || now=${#ROW_NOW[at]}
        ((${#ROW_WANTED[at]} <= wanted)) || wanted=${#ROW_WANTED[at]}
    done
    printf '%-8s %-*s  %-*s  %-*s  %s\n' STATUS "$key" SETTING "$now" NOW "$wanted" WANTED NOTE
    for at in "${!ROW_KEY[@]}"; do
        printf '%-8s %-*s  %-*s  %-*s  %s\n' "${ROW_STATUS[at]}" "$key" "${ROW_KEY[at]}" \
            "$now" "${ROW_NOW[at]}" "$wanted" "${ROW_WANTED[at]}" "${ROW_NOTE[at]}"
    done | sed 's/ *$//'
}

# show_changes: each change that apply would make, with its reason.
show_changes() {
    local at number
    for at in "${!ROW_KEY[@]}"; do
        number=${ROW_SETTING[at]}
        [[ -n ${ROW_SET[at]} && ${ROW_STATUS[at]} == drift ]] || continue
        printf '\n%s: %s -> %s\n' "${ROW_KEY[at]}" "${ROW_NOW[at]}" "${ROW_SET[at]}"
        indent "${TABLE[$number,reason]}"
        indent "Risk: ${TABLE[$number,risk]}"
    done
}

# show_harmful: the harmful values, to be mended by a person who knows why they are there.
show_harmful() {
    local at
    for at in "${!ROW_KEY[@]}"; do
        [[ ${ROW_STATUS[at]} == harmful ]] || continue
        printf '\nHARMFUL: %s = %s, %s\n' "${ROW_KEY[at]}" "${ROW_NOW[at]}" "${ROW_NOTE[at]}"
        indent "Better: ${ROW_WANTED[at]}. It is not changed here: somebody put it there, and should know."
    done
}

indent() {
    fold -s -w 100 <<<"$1" | sed 's/^/    /; s/ *$//'
}

# json_string TEXT: quoted, in REPLY.
json_string() {
    local text=$1
    text=${text//\\/\\\\}
    text=${text//\"/\\\"}
    text=${text//$'\t'/ }
    # What else would have to be escaped is in none of the values, and a stray control character says nothing.
    REPLY="\"${text//[[:cntrl:]]/}\""
}

# show_json STATUS: all rows as one object.
show_json() {
    local at name separator=''
    local -a profiles
    IFS=, read -ra profiles <<<"$PROFILES"
    printf '{"status":"%s","place":"%s","profiles":[' "$1" "$PLACE"
    for name in "${profiles[@]}"; do
        printf '%s"%s"' "$separator" "$name"
        separator=,
    done
    printf '],"connections":%d,"ram_mib":%d,"cpus":%d,"rows":[' "$CONNECTIONS" "$RAM_MIB" "$CPUS"
    separator=''
    for at in "${!ROW_KEY[@]}"; do
        printf '%s{' "$separator"
        show_json_field key "${ROW_KEY[at]}" ,
        show_json_field status "${ROW_STATUS[at]}" ,
        show_json_field now "${ROW_NOW[at]}" ,
        show_json_field wanted "${ROW_WANTED[at]}" ,
        show_json_field scope "${ROW_SCOPE[at]}" ,
        show_json_field note "${ROW_NOTE[at]}" '}'
        separator=,
    done
    printf ']}\n'
}

show_json_field() {
    json_string "$2"
    printf '"%s":%s%s' "$1" "$REPLY" "$3"
}
