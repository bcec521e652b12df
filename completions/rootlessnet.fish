# Completion of rootlessnet for fish. The program itself says what fits, so this file need not
# change with it.
#
#   rootlessnet completion fish | source        in ~/.config/fish/config.fish

function __rootlessnet_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l program $words[1]
    type -q -- $program; or set program rootlessnet
    set -e words[1]
    set -l value (string replace -r -- '^--[^=]*=' '' $current)
    set -l option (string match -r -- '^--[^=]*=' $current)
    for line in ($program completion --words -- $words "$current" 2>/dev/null)
        switch $line
            case :files
                string replace -r -- '^' "$option" (__fish_complete_path "$value")
            case :directories
                string replace -r -- '^' "$option" (__fish_complete_directories "$value")
            case ':command *'
                set -l skip (string replace -- ':command ' '' $line)
                while test $skip -gt 0
                    set -e words[1]
                    set skip (math $skip - 1)
                end
                complete -C (string join -- ' ' (string escape -- $words) $current)
            case '*'
                printf '%s\n' $line
        end
    end
end

complete -c rootlessnet -f -a '(__rootlessnet_complete)'
