#compdef rootlessnet
# Completion of rootlessnet for zsh. The program itself says what fits, so this file need not
# change with it.
#
#   eval "$(rootlessnet completion zsh)"        in ~/.zshrc, after compinit
#
# or as the file _rootlessnet in a directory of $fpath.

_rootlessnet() {
    local program=${${(Q)words[1]}/#\~/$HOME} line text
    local -a asked lines found keys
    whence -p -- $program >/dev/null || program=rootlessnet
    (( CURRENT > 2 )) && asked=("${(@Q)words[2,CURRENT-1]}")
    lines=("${(@f)$($program completion --words -- "${asked[@]}" "${(Q)PREFIX}" 2>/dev/null)}")
    for line in $lines; do
        case $line in
        (:files) compset -P '--*='; _files; return ;;
        (:directories) compset -P '--*='; _files -/; return ;;
        (:command\ *)
            integer skip=$(( ${line#:command } + 1 ))
            shift $skip words
            (( CURRENT -= skip ))
            _normal
            return
            ;;
        esac
        text=${${line%%$'\t'*}//:/\\:}
        if [[ $text == *= ]]; then
            keys+=("$text:${line#*$'\t'}")
        else
            found+=("$text:${line#*$'\t'}")
        fi
    done
    (( $#keys )) && _describe -t keys 'option' keys -S ''
    (( $#found )) && _describe -t words 'rootlessnet' found
    (( $#keys + $#found ))
}

if [[ ${funcstack[1]-} == _rootlessnet ]]; then
    _rootlessnet "$@"
else
    compdef _rootlessnet rootlessnet
fi
